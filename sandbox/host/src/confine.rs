//! Confining a process to parts of the file system with Landlock (landlock(7)). Unlike file
//! permissions, it also restricts a process with UID 0.

#![allow(unsafe_code, reason = "there is no wrapper for asking the kernel's version")]

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, path_beneath_rules,
};

/// Access rights to restrict: those of Linux 6.10. An older kernel enforces the ones it knows.
const RIGHTS: ABI = ABI::V5;

/// `LANDLOCK_CREATE_RULESET_VERSION` (landlock_create_ruleset(2)).
const VERSION: libc::c_long = 1;

/// Files, and directories with all below them, that a process may use. Paths that do not exist
/// are skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Read and execute.
    pub read: Vec<PathBuf>,
    /// Read and write existing files.
    pub files: Vec<PathBuf>,
    /// All rights.
    pub write: Vec<PathBuf>,
}

/// Whether the kernel has Landlock (5.13 and later, if built in and enabled).
pub fn can_confine() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes and only returns the ABI version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) > 0 }
}

/// Builds the ruleset for [`enforce`]; runs before the fork, since it allocates.
pub(crate) fn prepare(paths: &Paths) -> io::Result<RulesetCreated> {
    let failed = |error: RulesetError| io::Error::other(format!("Landlock: {error}"));
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    let files = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    ruleset
        .add_rules(path_beneath_rules(&paths.read, AccessFs::from_read(RIGHTS)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(&paths.files, files)))
        .and_then(|rules| {
            rules.add_rules(path_beneath_rules(&paths.write, AccessFs::from_all(RIGHTS)))
        })
        .map_err(failed)
}

/// Confines the calling process: two system calls.
pub(crate) fn enforce(ruleset: RulesetCreated) -> io::Result<()> {
    ruleset.restrict_self().map(drop).map_err(|_| io::ErrorKind::PermissionDenied.into())
}
