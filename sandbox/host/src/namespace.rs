//! A mount namespace for the mounts and programs of one Pod. The kernel removes it, with all its
//! mounts, when the last program in it has exited and the last handle is closed.
//!
//! It has the host's root file system, `/proc` and the requested mounts of the host, all private.
//! The host's other mounts are not copied: a copy would keep a volume of another Pod in use after
//! the host has unmounted it.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns, unshare};

use crate::bind;
use crate::mounts::MountTable;

/// Every host has it, and mount tables are read from it.
const PROC: &str = "/proc";

/// The calling thread's namespace.
const CURRENT: &str = "/proc/thread-self/ns/mnt";

/// A mount namespace, held open.
#[derive(Debug)]
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// Creates one with the mounts on which the paths `keep` lie; the paths need not exist.
    pub(crate) fn new(keep: &[PathBuf]) -> io::Result<Self> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Not private yet: an unmount on the host in the meantime must propagate.
            change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
            let table = MountTable::current()?;
            let root = table.at(Path::new("/"));
            let root = root.ok_or_else(|| io::Error::other("nothing is mounted on /"))?;
            let mut kept = Vec::new();
            let keep = keep.iter().map(PathBuf::as_path).chain([Path::new(PROC)]);
            for point in needed(&table, keep) {
                let clone = bind::clone(&point, false)?;
                bind::set(&clone, 0, 0, libc::MS_PRIVATE)?;
                kept.push((point, clone));
            }
            for child in table.iter().filter(|mount| mount.parent == root.id) {
                detach_all(&child.point)?;
            }
            change(Path::new("/"), MsFlags::MS_PRIVATE)?;
            for (point, clone) in &kept {
                bind::attach(clone, point)?;
            }
            File::open(CURRENT).map(|file| Self(file.into()))
        })
    }

    /// Runs `work` in it, on its own thread.
    pub(crate) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNS)?;
            work()
        })
    }

    /// A handle to pass to a program.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

/// Runs `work` with a mount point, in a temporary copy of this process's mount namespace, and
/// returns what is mounted at the path that `work` returns, detached.
pub(crate) fn detached<E: Send>(
    work: impl FnOnce(&Path) -> Result<PathBuf, E> + Send,
) -> io::Result<Result<OwnedFd, E>> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        match work(Path::new(PROC)) {
            Ok(part) => bind::clone(&part, false).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    })
}

/// Runs `work` on a new thread, so that what it unshares is gone afterwards.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let done = std::thread::Builder::new().spawn_scoped(scope, work)?.join();
        done.unwrap_or_else(|_| Err(io::Error::other("a thread that mounts panicked")))
    })
}

/// The mount points on which `paths` lie, without duplicates, in mount order.
fn needed<'a, 'b>(
    table: &'a MountTable,
    paths: impl Iterator<Item = &'b Path> + Clone,
) -> Vec<Cow<'a, Path>> {
    let mut points: Vec<Cow<'_, Path>> = Vec::new();
    for mount in table.iter() {
        let wanted = paths.clone().any(|path| path.starts_with(&mount.point));
        if wanted && mount.point != Path::new("/") && !points.contains(&mount.point) {
            points.push(mount.point);
        }
    }
    points
}

#[expect(clippy::disallowed_methods, reason = "this module mounts")]
fn change(point: &Path, flags: MsFlags) -> nix::Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(none, point, none, flags, none)
}

/// Detaches all mounts that are stacked on `point`.
#[expect(clippy::disallowed_methods, reason = "this module mounts")]
fn detach_all(point: &Path) -> nix::Result<()> {
    loop {
        match nix::mount::umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // It is no longer a mount point, or was below a detached one.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_needs_every_mount_on_the_way_to_it() {
        let table = MountTable::parse(
            "1 0 8:1 / / rw - ext4 a rw\n2 1 0:2 / /run rw - tmpfs b rw\n\
             3 2 0:3 / /run/a rw - tmpfs c rw\n4 2 0:4 / /run/ab rw - tmpfs d rw\n\
             5 1 0:5 / /var rw - ext4 e rw\n6 2 0:6 / /run/a rw - tmpfs f rw\n",
        )
        .unwrap();
        let paths = ["/run/a/vm", "/usr/bin/x"].map(Path::new);
        assert_eq!(needed(&table, paths.into_iter()), [Path::new("/run"), Path::new("/run/a")]);
    }
}
