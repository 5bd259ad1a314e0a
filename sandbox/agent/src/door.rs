//! The one door to mounts and new processes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use crate::error::{Doing, Result};

/// Mounts `source` of type `fs` at `target`, which must be there.
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

/// Like [`mount`], with the kernel's bare answer.
#[expect(clippy::disallowed_methods, reason = "the door")]
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

/// Shows `source` at `target` as well.
#[expect(clippy::disallowed_methods, reason = "the door")]
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
#[expect(clippy::disallowed_methods, reason = "the door")]
pub(crate) fn move_mount(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(Some(source), target, none, MsFlags::MS_MOVE, none)
        .doing(|| format!("moving the mount {} to {}", source.display(), target.display()))
}

/// Takes the mount at `target` away; fine when there is none.
#[expect(clippy::disallowed_methods, reason = "the door")]
pub(crate) fn unmount(target: &Path) -> Result<()> {
    match nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        // Somebody holds a file in it: it goes with the last of them.
        Err(Errno::EBUSY) => {
            nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .doing(|| format!("detaching the mount at {}", target.display()))
        }
        Err(refused) => Err(refused).doing(|| format!("unmounting {}", target.display())),
    }
}

/// The descriptors of a new process's standard streams; without one it gets /dev/null.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// This program again, with an empty environment; it keeps `report` open.
#[expect(clippy::disallowed_methods, reason = "the door")]
pub(crate) fn again(program: &Path, streams: Streams, report: BorrowedFd<'_>) -> Command {
    let stdio = |stream: Option<OwnedFd>| stream.map_or_else(Stdio::null, Stdio::from);
    let mut command = Command::new(program);
    command.env_clear().current_dir("/");
    command.stdin(stdio(streams.stdin)).stdout(stdio(streams.stdout)).stderr(stdio(streams.stderr));
    let report = report.as_raw_fd();
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; the
    // caller keeps `report` open until the process is spawned.
    unsafe {
        command.pre_exec(move || {
            let done = libc::fcntl(report, libc::F_SETFD, 0);
            if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    command
}
