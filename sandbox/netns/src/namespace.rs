//! Work inside a network namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::NetnsError;

/// The namespace of this process, which is the host's.
const OWN: &str = "/proc/self/ns/net";

/// A Pod's network namespace, open.
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
    /// [`NetnsError::Own`] when it is empty or this process's own, [`NetnsError::Enter`].
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

    /// Opens the namespace at `path` if it is still the one with this inode.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Enter`] when it is there and cannot be opened.
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

    /// Tells it from every other namespace there is.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace itself.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Runs `work` in the namespace at `path`, on a thread that ends with it: a thread's namespace
/// is its own, and no other task may ever run in this one. What nobody waits for any more is
/// dropped on that thread.
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
    let lost = || failed(io::Error::other("the thread ended early")).into();
    receiver.await.unwrap_or_else(|_| Err(lost()))
}

/// [`inside`] for a caller that cannot wait for a future: it blocks instead.
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
    fn refuses_the_host_and_tells_what_is_gone() {
        for host in ["", OWN] {
            let error = Namespace::open(Path::new(host)).unwrap_err();
            assert!(matches!(error, NetnsError::Own), "{host}: {error:?}");
        }
        let gone = Path::new("/nonexistent/netns");
        assert!(matches!(Namespace::open(gone), Err(NetnsError::Enter { .. })));
        assert!(Namespace::find(gone, 1).unwrap().is_none());
        let other = tempfile::NamedTempFile::new().unwrap();
        assert!(Namespace::find(other.path(), 1).unwrap().is_none(), "another inode");
    }
}
