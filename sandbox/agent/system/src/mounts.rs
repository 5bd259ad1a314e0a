//! Mounting and unmounting: the only calls of mount(2) and umount2(2) in the agent.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use crate::error::{Doing, Result};

/// Mounts `source` of type `fs` at `target`, which must exist.
pub(crate) fn mount(
    source: &str,
    target: &Path,
    fs: &str,
    flags: MsFlags,
    data: &str,
) -> Result<()> {
    try_mount(source, target, fs, flags, data)
        .doing(|| format!("mounting {source} ({fs}, {data:?}) at {}", target.display()))
}

/// Like [`mount`], with the kernel's bare error.
#[expect(clippy::disallowed_methods, reason = "the agent mounts in this module only")]
pub(crate) fn try_mount(
    source: &str,
    target: &Path,
    fs: &str,
    flags: MsFlags,
    data: &str,
) -> nix::Result<()> {
    let data = Some(data).filter(|data| !data.is_empty());
    nix::mount::mount(Some(source), target, Some(fs), flags, data)
}

/// Bind-mounts `source` at `target`.
#[expect(clippy::disallowed_methods, reason = "the agent mounts in this module only")]
pub(crate) fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let none: Option<&str> = None;
    let bound = nix::mount::mount(Some(source), target, none, MsFlags::MS_BIND, none);
    let done = bound.and_then(|()| match read_only {
        true => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            nix::mount::mount(none, target, none, flags, none)
        }
        false => Ok(()),
    });
    done.doing(|| format!("binding {} to {}", source.display(), target.display()))
}

/// Moves the mount at `source` to `target`.
#[expect(clippy::disallowed_methods, reason = "the agent mounts in this module only")]
pub(crate) fn move_mount(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(Some(source), target, none, MsFlags::MS_MOVE, none)
        .doing(|| format!("moving the mount {} to {}", source.display(), target.display()))
}

/// Unmounts `target`; succeeds if nothing is mounted there. A busy mount is detached.
#[expect(clippy::disallowed_methods, reason = "the agent mounts in this module only")]
pub(crate) fn unmount(target: &Path) -> Result<()> {
    match nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        // A process has a file in it open: the kernel unmounts it when the last one is closed.
        Err(Errno::EBUSY) => {
            nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .doing(|| format!("detaching the mount at {}", target.display()))
        }
        Err(errno) => Err(errno).doing(|| format!("unmounting {}", target.display())),
    }
}
