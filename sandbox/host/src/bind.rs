//! Bind mounts that are complete when they appear: cloned, set up while detached, then attached.
//!
//! A bind made by mount(2) joins its source's peer group and is changed later. Until it is,
//! unmounting it unmounts the source's own submounts as well.

#![allow(unsafe_code, reason = "open_tree(2), mount_setattr(2) and move_mount(2) have no wrapper")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::mount_error::MountError;

/// How a bind mount relates to its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind {
    /// Whether to include mounts below the source.
    pub recursive: bool,
    /// Which of the mounts are read-only.
    pub read_only: ReadOnly,
    /// Where later mounts propagate.
    pub propagation: Propagation,
}

/// Which mounts of a bind are read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnly {
    /// None but those that are in the source.
    No,
    /// The mount itself, not those below it.
    Top,
    /// All.
    All,
}

/// Where mounts made later propagate (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nowhere.
    Private,
    /// From the source to the bind.
    Slave,
    /// From the bind to copies of it.
    Shared,
}

/// Binds `source` on the existing `target` of the same sort (directory or not).
pub(crate) fn bind(source: &Path, target: &Path, how: Bind) -> Result<(), MountError> {
    let bound = copy(source, how).and_then(|tree| attach(&tree, target));
    bound.map_err(|error| failed(source, target, error))
}

/// The error of a bind mount that failed.
pub(crate) fn failed(source: &Path, target: &Path, error: io::Error) -> MountError {
    MountError::Mount {
        kind: "bind".into(),
        source_path: source.display().to_string(),
        target: target.to_owned(),
        source: error,
    }
}

/// A detached copy of what is mounted at `source`, set up as `how` says.
pub(crate) fn copy(source: &Path, how: Bind) -> io::Result<OwnedFd> {
    let tree = clone(source, how.recursive)?;
    let deep = if how.recursive { libc::AT_RECURSIVE } else { 0 };
    let propagation = match how.propagation {
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Private | Propagation::Shared => libc::MS_PRIVATE,
    };
    set(&tree, deep, 0, propagation)?;
    if how.propagation == Propagation::Shared {
        // After leaving the source's peer group, else it would stay in that one.
        set(&tree, deep, 0, libc::MS_SHARED)?;
    }
    match how.read_only {
        ReadOnly::No => {}
        ReadOnly::Top => set(&tree, 0, libc::MOUNT_ATTR_RDONLY, 0)?,
        ReadOnly::All => set(&tree, deep, libc::MOUNT_ATTR_RDONLY, 0)?,
    }
    Ok(tree)
}

/// Attaches a detached mount to the existing `target`.
pub(crate) fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = path(target)?;
    // SAFETY: both strings end in NUL and live through the call, `tree` is open.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    checked(moved).map(drop)
}

/// A detached copy of the mount at `source`.
pub(crate) fn clone(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let source = path(source)?;
    let deep = if recursive { libc::AT_RECURSIVE.unsigned_abs() } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs() | deep;
    // SAFETY: the string ends in NUL and lives through the call.
    let opened =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
    let raw = i32::try_from(checked(opened)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sets attributes and propagation of a detached tree.
pub(crate) fn set(tree: &OwnedFd, deep: i32, attributes: u64, propagation: u64) -> io::Result<()> {
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    change(tree, deep, &wanted)
}

/// Maps the owners of files in a detached mount as the user namespace `users` does.
pub(crate) fn map_owners(tree: &OwnedFd, users: &OwnedFd) -> io::Result<()> {
    let userns_fd = u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?;
    let attr_set = libc::MOUNT_ATTR_IDMAP;
    change(tree, 0, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd })
}

fn change(tree: &OwnedFd, deep: i32, wanted: &libc::mount_attr) -> io::Result<()> {
    let empty: &CStr = c"";
    // SAFETY: the string ends in NUL, `wanted` is as long as the size says, both live through
    // the call, `tree` is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | deep,
            wanted as *const libc::mount_attr,
            size_of::<libc::mount_attr>(),
        )
    };
    checked(done).map(drop)
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::mount::unmount_all;
    use crate::mounts::MountTable;

    const PRIVATE: Bind =
        Bind { recursive: true, read_only: ReadOnly::No, propagation: Propagation::Private };

    fn propagation(point: &Path) -> String {
        let table = MountTable::current().unwrap();
        table.at(point).unwrap().propagation.to_str().unwrap().to_owned()
    }

    #[test]
    #[ignore = "needs mount"]
    fn binds_are_independent_of_their_source() {
        let dir = tempfile::tempdir().unwrap();
        let [base, source, target] = ["base", "base/source", "target"].map(|n| dir.path().join(n));
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::create_dir(&target).unwrap();
        // A shared source with a mount below it, as a host's root usually is.
        bind(&base, &base, Bind { propagation: Propagation::Shared, ..PRIVATE }).unwrap();
        assert!(propagation(&base).starts_with("shared:"));
        bind(&target, &source.join("sub"), PRIVATE).unwrap();
        fs::write(target.join("inside"), "x").unwrap();

        let top = Bind { read_only: ReadOnly::Top, ..PRIVATE };
        bind(&source, &target, top).unwrap();
        assert_eq!(propagation(&target), "");
        let error = fs::write(target.join("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        fs::write(target.join("sub/new"), "").unwrap();
        unmount_all(&target).unwrap();
        assert!(source.join("sub/inside").exists(), "the source's own mount was unmounted");

        bind(&source, &target, Bind { read_only: ReadOnly::All, ..PRIVATE }).unwrap();
        let error = fs::write(target.join("sub/other"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        unmount_all(&target).unwrap();

        bind(&source, &target, Bind { propagation: Propagation::Slave, ..PRIVATE }).unwrap();
        assert!(propagation(&target).starts_with("master:"));
        unmount_all(&target).unwrap();
        unmount_all(&base).unwrap();
    }

    #[test]
    #[ignore = "needs mount"]
    fn files_are_bound_and_errors_name_the_source() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, missing] = ["from", "to", "missing"].map(|name| dir.path().join(name));
        fs::write(&from, "from").unwrap();
        fs::write(&to, "to").unwrap();
        bind(&from, &to, PRIVATE).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "from");
        unmount_all(&to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "to");
        let error = bind(&missing, &to, PRIVATE).unwrap_err().to_string();
        assert!(error.starts_with(&format!("mounting bind {}", missing.display())), "{error}");
    }
}
