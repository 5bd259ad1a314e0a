//! Removal of a whole tree without following a link.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat};
use rustix::io::Errno;

use super::UnpackError;
use super::tree::{names, unlink};

/// Links can make a tree deeper than any one path; each level holds a descriptor.
const DEPTH_LIMIT: usize = 512;

/// Removes `name` and all below it, if it is there; how many entries went.
pub(super) fn remove_all(
    parent: &impl AsFd,
    name: &OsStr,
    path: &Path,
) -> Result<u64, UnpackError> {
    remove(parent, name, path, 0)
}

fn remove(parent: &impl AsFd, name: &OsStr, path: &Path, depth: usize) -> Result<u64, UnpackError> {
    if depth > DEPTH_LIMIT {
        return Err(UnpackError::refuse(path, "what it replaces is nested too deeply"));
    }
    let error = |errno: Errno| UnpackError::io("remove", path)(errno);
    match unlink(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::NOENT) => return Ok(0),
        // Linux says the first, POSIX the second.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(error(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty()).map_err(error)?;
    let mut removed = 1;
    for child in names(&fd, path)? {
        removed += remove(&fd, &child, path, depth + 1)?;
    }
    unlink(parent, name, AtFlags::REMOVEDIR).map_err(error)?;
    Ok(removed)
}
