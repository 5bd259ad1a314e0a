//! Recursive removal without following symlinks.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::error::UnpackError;

/// Symlinks allow trees deeper than the longest path; each level holds a descriptor open.
const DEPTH_LIMIT: usize = 512;

/// Removes `name` and everything below it, if it exists; returns the number of removed entries.
pub(super) fn remove_all(
    parent: &impl AsFd,
    name: &OsStr,
    path: &Path,
) -> Result<u64, UnpackError> {
    remove(parent, name, path, 0)
}

fn remove(parent: &impl AsFd, name: &OsStr, path: &Path, depth: usize) -> Result<u64, UnpackError> {
    if depth > DEPTH_LIMIT {
        return Err(UnpackError::refuse(path, "the directory it replaces is nested too deeply"));
    }
    let error = |errno: Errno| UnpackError::io("remove", path)(errno);
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::NOENT) => return Ok(0),
        // A directory: EISDIR on Linux, EPERM by POSIX.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(error(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty()).map_err(error)?;
    let mut removed = 1;
    for child in names(&fd, path)? {
        removed += remove(&fd, &child, path, depth + 1)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(error)?;
    Ok(removed)
}

/// The names in a directory.
pub(super) fn names(fd: &impl AsFd, path: &Path) -> Result<Vec<OsString>, UnpackError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd).map_err(UnpackError::io("read", path))? {
        let entry = entry.map_err(UnpackError::io("read", path))?;
        let name = entry.file_name().to_owned().into_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}
