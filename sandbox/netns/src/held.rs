//! A network namespace that a thread of this process is in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;

use crate::error::NetnsError;
use crate::namespace::Namespace;

/// A thread in a network namespace, so that the namespace has an id below `/proc` before any other
/// process is in it. Dropping it lets the thread exit.
#[derive(Debug)]
pub struct Held {
    thread: u32,
    /// The thread waits until this is dropped.
    _release: Sender<()>,
}

impl Held {
    /// Holds the Pod's namespace at `path`.
    ///
    /// # Errors
    ///
    /// As [`Namespace::open`], and [`NetnsError::Enter`] if it cannot be entered.
    pub fn join(path: &Path) -> Result<Self, NetnsError> {
        let namespace = Namespace::open(path)?;
        Self::start(move || Ok(setns(namespace.file(), CloneFlags::CLONE_NEWNET)?))
            .map_err(|source| NetnsError::Enter { path: path.to_owned(), source })
    }

    /// Makes a namespace. The kernel removes it when this and all processes in it are gone.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Enter`].
    pub fn fresh() -> Result<Self, NetnsError> {
        Self::start(|| Ok(unshare(CloneFlags::CLONE_NEWNET)?))
            .map_err(|source| NetnsError::Enter { path: "a new network namespace".into(), source })
    }

    fn start(enter: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (release, released) = mpsc::channel::<()>();
        let (entered, outcome) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("netns".into()).spawn(move || {
            // The receiver waits for it.
            let _ = entered.send(enter().map(|()| gettid().as_raw().unsigned_abs()));
            // Fails once the sender is dropped, which is what it waits for.
            let _ = released.recv();
        })?;
        let thread = outcome.recv().map_err(io::Error::other)??;
        Ok(Self { thread, _release: release })
    }

    /// The thread's id, which `/proc` and netlink take for a process id.
    pub fn pid(&self) -> u32 {
        self.thread
    }

    /// The namespace's path while this is held.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.thread).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    #[ignore = "needs root"]
    fn a_thread_holds_a_namespace_that_another_one_joins() {
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        let fresh = Held::fresh().unwrap();
        assert_ne!(inode(&fresh.path()), inode(Path::new("/proc/self/ns/net")));
        let joined = Held::join(&fresh.path()).unwrap();
        assert_ne!(joined.pid(), fresh.pid());
        assert_eq!(inode(&joined.path()), inode(&fresh.path()));
    }
}
