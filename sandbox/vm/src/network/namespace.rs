//! Work inside a network namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::error::NetworkError;

/// The namespace of this process, which is the host's.
const OWN: &str = "/proc/self/ns/net";

/// A Pod's network namespace, open.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
    inode: u64,
}

impl Namespace {
    /// Opens the Pod's namespace at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        if path.as_os_str().is_empty() {
            return Err(NetworkError::HostNetwork);
        }
        let failed = |source| NetworkError::Enter { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let own = fs::metadata(OWN).map_err(failed)?;
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            return Err(NetworkError::HostNetwork);
        }
        Ok(Self { file, inode: found.ino() })
    }

    /// Opens the namespace at `path` if it is still the one with this inode.
    pub(super) fn find(path: &Path, inode: u64) -> Result<Option<Self>, NetworkError> {
        match Self::open(path) {
            Ok(namespace) => Ok(Some(namespace).filter(|namespace| namespace.inode == inode)),
            Err(NetworkError::Enter { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(NetworkError::HostNetwork) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells it from every other namespace there is.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Runs `work` in the namespace at `path`, on a thread that ends with it: a thread's namespace
/// is its own, and no other task may ever run in this one. What nobody waits for any more is
/// dropped on that thread.
pub(super) async fn inside<T: Send + 'static>(
    path: &Path,
    namespace: Namespace,
    work: impl FnOnce(&Namespace) -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let failed = |source| NetworkError::Enter { path: path.to_owned(), source };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let entered = path.to_owned();
    let enter = move || {
        let result = setns(&namespace.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetworkError::Enter { path: entered, source: e.into() })
            .and_then(|()| work(&namespace));
        drop(sender.send(result));
    };
    std::thread::Builder::new().name("netns".into()).spawn(enter).map_err(failed)?;
    receiver.await.unwrap_or_else(|_| Err(failed(io::Error::other("the thread ended early"))))
}

/// [`inside`] for a caller that cannot wait for a future: it blocks instead.
pub(super) fn inside_blocking<T: Send>(
    path: &Path,
    namespace: &Namespace,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let failed = |source| NetworkError::Enter { path: path.to_owned(), source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            setns(&namespace.file, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
            work()
        });
        let thread = thread.map_err(failed)?;
        thread.join().unwrap_or_else(|_| Err(failed(io::Error::other("the thread panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_the_host_and_tells_what_is_gone() {
        for host in ["", OWN] {
            let error = Namespace::open(Path::new(host)).unwrap_err();
            assert!(matches!(error, NetworkError::HostNetwork), "{host}: {error:?}");
        }
        let gone = Path::new("/nonexistent/netns");
        assert!(matches!(Namespace::open(gone), Err(NetworkError::Enter { .. })));
        assert!(Namespace::find(gone, 1).unwrap().is_none());
        let other = tempfile::NamedTempFile::new().unwrap();
        assert!(Namespace::find(other.path(), 1).unwrap().is_none(), "another inode");
    }
}
