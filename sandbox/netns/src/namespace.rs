//! Work inside a network namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::NetnsError;

/// This process's namespace, which is the host's.
const OWN: &str = "/proc/self/ns/net";

/// A Pod's network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    inode: u64,
}

impl Namespace {
    /// Opens the Pod's namespace at `path`.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Own`] if `path` is empty or names this process's own namespace,
    /// [`NetnsError::Enter`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        if path.as_os_str().is_empty() {
            return Err(NetnsError::Own);
        }
        let failed = |source| NetnsError::Enter { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let own = fs::metadata(OWN).map_err(failed)?;
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            return Err(NetnsError::Own);
        }
        Ok(Self { file, inode: found.ino() })
    }

    /// Opens the namespace at `path`; `None` if there is none or it has another inode.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Enter`] if it exists and cannot be opened.
    pub fn find(path: &Path, inode: u64) -> Result<Option<Self>, NetnsError> {
        match Self::open(path) {
            Ok(namespace) => Ok(Some(namespace).filter(|namespace| namespace.inode == inode)),
            Err(NetnsError::Enter { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(NetnsError::Own) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its inode number, unique among existing namespaces.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The open namespace file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Runs `work` in `namespace` on a new thread, which exits afterwards: a namespace is entered per
/// thread, and no other task may run on this one. If the caller is cancelled, the result is dropped
/// on that thread. `path` is the namespace's, for errors.
///
/// # Errors
///
/// [`NetnsError::Enter`], or what `work` fails with.
pub async fn inside<T, E>(
    path: &Path,
    namespace: Namespace,
    work: impl FnOnce(&Namespace) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<NetnsError> + Send + 'static,
{
    let failed = |source| NetnsError::Enter { path: path.to_owned(), source };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let entered = path.to_owned();
    let enter = move || {
        let result = setns(&namespace.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetnsError::Enter { path: entered, source: e.into() }.into())
            .and_then(|()| work(&namespace));
        drop(sender.send(result));
    };
    std::thread::Builder::new().name("netns".into()).spawn(enter).map_err(failed)?;
    let lost = || failed(io::Error::other("the thread panicked")).into();
    receiver.await.unwrap_or_else(|_| Err(lost()))
}

/// [`inside`] for a caller without a runtime: blocks until `work` is done.
///
/// # Errors
///
/// As [`inside`].
pub fn inside_blocking<T, E>(
    path: &Path,
    namespace: &Namespace,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E>
where
    T: Send,
    E: From<NetnsError> + Send,
{
    let failed = |source| NetnsError::Enter { path: path.to_owned(), source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            setns(&namespace.file, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
            work()
        });
        let thread = thread.map_err(failed)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(failed(io::Error::other("the thread panicked")).into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_is_refused_and_a_missing_one_reported() {
        for host in ["", OWN] {
            let error = Namespace::open(Path::new(host)).unwrap_err();
            assert!(matches!(error, NetnsError::Own), "{host}: {error:?}");
        }
        let missing = Path::new("/nonexistent/netns");
        assert!(matches!(Namespace::open(missing), Err(NetnsError::Enter { .. })));
        assert!(Namespace::find(missing, 1).unwrap().is_none());
        let other = tempfile::NamedTempFile::new().unwrap();
        assert!(Namespace::find(other.path(), 1).unwrap().is_none(), "another inode");
    }
}
