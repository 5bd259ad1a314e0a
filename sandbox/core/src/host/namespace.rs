//! A mount namespace for the mounts and programs of one Pod: nobody else sees what is mounted in
//! it, and it goes, with all its mounts, when the last program in it and its last holder are gone.
//!
//! It has the host's root file system, `/proc` and those of the host's mounts that were asked for,
//! all of them private. The others are not copied: a copy would keep a volume of another Pod in use that
//! the host has unmounted.

#![allow(unsafe_code, reason = "unshare(2) and setns(2) run on a thread of their own")]

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns, unshare};

use super::bind;
use crate::mounts::MountTable;

/// Every host has this, and whoever mounts reads the mount table there.
const PROC: &str = "/proc";

/// The thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/mnt";

/// A mount namespace, held open.
#[derive(Debug)]
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    /// Makes one with the mounts on which the paths `keep` lie, whether they are there or not.
    pub(super) fn new(keep: &[PathBuf]) -> io::Result<Self> {
        alone(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Not private yet: what the host unmounts while this goes on is to go here too.
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
                bare(&child.point)?;
            }
            change(Path::new("/"), MsFlags::MS_PRIVATE)?;
            for (point, clone) in &kept {
                bind::attach(clone, point)?;
            }
            File::open(OWN).map(|file| Self(file.into()))
        })
    }

    /// Does `work` in it, on a thread of its own.
    pub(super) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        alone(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNS)?;
            work()
        })
    }

    /// Another handle of it.
    pub(super) fn handle(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

/// What `work` mounts on `/proc`, or the part of it that it names, as a mount that is nowhere. It
/// is done where the host's mounts are and nobody sees it.
pub(super) fn detached<E: Send>(
    work: impl FnOnce(&Path) -> Result<PathBuf, E> + Send,
) -> io::Result<Result<OwnedFd, E>> {
    alone(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        match work(Path::new(PROC)) {
            Ok(part) => bind::clone(&part, false).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    })
}

/// Does `work` on a thread that ends with it, and with it what the thread has left for itself.
pub(super) fn alone<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let done = std::thread::Builder::new().spawn_scoped(scope, work)?.join();
        done.unwrap_or_else(|_| Err(io::Error::other("a thread that mounts panicked")))
    })
}

/// The mount points on which `paths` lie, each once, in the table's order.
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

#[expect(clippy::disallowed_methods, reason = "this is the door")]
fn change(point: &Path, flags: MsFlags) -> nix::Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(none, point, none, flags, none)
}

/// Detaches all that is mounted on `point`, one on the other.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
fn bare(point: &Path) -> nix::Result<()> {
    loop {
        match nix::mount::umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // It is no mount point any more, or lies below what was detached.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_a_mount_needs_it_and_those_below_it() {
        let table = MountTable::parse(
            "1 0 8:1 / / rw - ext4 a rw\n2 1 0:2 / /run rw - tmpfs b rw\n\
             3 2 0:3 / /run/a rw - tmpfs c rw\n4 2 0:4 / /run/ab rw - tmpfs d rw\n\
             5 1 0:5 / /var rw - ext4 e rw\n6 2 0:6 / /run/a rw - tmpfs f rw\n",
        )
        .unwrap();
        let paths = ["/run/a/machine", "/usr/bin/x"].map(Path::new);
        assert_eq!(needed(&table, paths.into_iter()), [Path::new("/run"), Path::new("/run/a")]);
    }
}
