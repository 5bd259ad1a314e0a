//! Mounts: the only file of this crate that makes or removes them.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use sandbox_host::mounts::{self, MountTable};

use crate::node_error::NodeError;

/// Mounts a new tmpfs on an existing directory; `size` in bytes.
#[expect(clippy::disallowed_methods, reason = "the only file of this crate that mounts")]
pub(crate) fn mount_tmpfs(target: &Path, mode: u32, size: Option<i64>) -> Result<(), NodeError> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(NodeError::at("mount a tmpfs on", target))
}

/// Bind-mounts an open file or directory onto an existing path, with the mounts below it.
///
/// The source is this process's descriptor, so its path cannot be swapped between check and mount.
#[expect(clippy::disallowed_methods, reason = "the only file of this crate that mounts")]
pub(crate) fn bind(file: impl AsFd, target: &Path) -> Result<(), NodeError> {
    use std::os::fd::AsRawFd as _;
    let source = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(source.as_str()), target, None::<&str>, flags, None::<&str>)
        .map_err(NodeError::at("bind a volume's part onto", target))
}

/// Detaches every mount at or below a directory, the deepest first.
#[expect(clippy::disallowed_methods, reason = "the only file of this crate that mounts")]
pub(crate) fn unmount_below(directory: &Path) -> Result<(), NodeError> {
    for target in mounted_below(directory)? {
        nix::mount::umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(NodeError::at("unmount", &target))?;
    }
    // The directory is removed next, which must not reach through a mount into other files.
    match mounted_below(directory)?.first() {
        None => Ok(()),
        Some(target) => Err(NodeError::at("unmount", target)(nix::errno::Errno::EBUSY)),
    }
}

/// The mount points at or below a directory, the last mounted first.
fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>, NodeError> {
    let table = MountTable::current().map_err(NodeError::at("read", Path::new(mounts::CURRENT)))?;
    Ok(table.below(directory).rev().map(|mount| mount.point.into_owned()).collect())
}
