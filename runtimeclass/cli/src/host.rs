//! What is changed on the node itself: mounts and cgroups. The only file that does either.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

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

fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    let table = Path::new("/proc/self/mounts");
    let text = fs::read_to_string(table).map_err(HostError::at("read", table))?;
    Ok(mounts_below(&text, directory))
}

/// The mount points at or below a directory, the last mounted first.
fn mounts_below(table: &str, directory: &Path) -> Vec<PathBuf> {
    let target = |line: &str| line.split(' ').nth(1).map(|field| PathBuf::from(unescape(field)));
    let below = |path: &PathBuf| path.starts_with(directory);
    table.lines().rev().filter_map(target).filter(below).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escaped, plain);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mounts_below_and_nothing_beside() {
        let table = "tmpfs /run tmpfs rw 0 0\ntmpfs /run/p/a tmpfs rw 0 0\nx /run/p/a/b\\040c ext4 rw 0 0\nx /run/pa ext4 rw 0 0\nx /run/p ext4 rw 0 0\n";
        let found = mounts_below(table, Path::new("/run/p"));
        assert_eq!(found, ["/run/p", "/run/p/a/b c", "/run/p/a"].map(PathBuf::from));
    }
}
