//! What is changed on the node itself: mounts and cgroups. The only file that does either.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use sandbox_core::mounts::{self, MountTable};

/// Why the node could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub(crate) struct HostError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl HostError {
    /// For use with `map_err`: what was tried on which path.
    pub(crate) fn at<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self { what, path, source: source.into() }
    }
}

/// Mounts a new tmpfs on an existing directory; `size` in bytes.
#[expect(clippy::disallowed_methods, reason = "this file is the door to mounts of this crate")]
pub(crate) fn mount_tmpfs(target: &Path, mode: u32, size: Option<i64>) -> Result<(), HostError> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(HostError::at("mount a tmpfs on", target))
}

/// Binds what an open file stands for onto an existing path, with the mounts below it.
///
/// The file is named through this process's descriptor, so nobody can swap the path between check and mount.
#[expect(clippy::disallowed_methods, reason = "this file is the door to mounts of this crate")]
pub(crate) fn bind(file: impl AsFd, target: &Path) -> Result<(), HostError> {
    use std::os::fd::AsRawFd as _;
    let source = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(source.as_str()), target, None::<&str>, flags, None::<&str>)
        .map_err(HostError::at("bind a volume's part onto", target))
}

/// Detaches every mount at or below a directory, the deepest first.
#[expect(clippy::disallowed_methods, reason = "this file is the door to mounts of this crate")]
pub(crate) fn unmount_below(directory: &Path) -> Result<(), HostError> {
    for target in mounted_below(directory)? {
        nix::mount::umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(HostError::at("unmount", &target))?;
    }
    // Whoever removes the directory next must not reach through a mount into somebody else's files.
    match mounted_below(directory)?.first() {
        None => Ok(()),
        Some(target) => Err(HostError::at("unmount", target)(nix::errno::Errno::EBUSY)),
    }
}

/// The mount points at or below a directory, the last mounted first.
fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    let table = MountTable::current().map_err(HostError::at("read", Path::new(mounts::CURRENT)))?;
    Ok(table.below(directory).rev().map(|mount| mount.point.into_owned()).collect())
}
