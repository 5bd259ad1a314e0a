//! Confining a process to parts of the file system with Landlock (landlock(7)): also what is owned
//! by root is out of a root process's reach then.

#![allow(unsafe_code, reason = "there is no wrapper for asking the kernel's version")]

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, path_beneath_rules,
};

/// The rights that are known here: Linux 6.10's. An older kernel holds those that it knows.
const KNOWN: ABI = ABI::V5;

/// `LANDLOCK_CREATE_RULESET_VERSION` (landlock_create_ruleset(2)).
const VERSION: libc::c_long = 1;

/// What of the file system a process may use: files, and directories with all below them. Names
/// that are not there allow nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// To read and to execute.
    pub read: Vec<PathBuf>,
    /// To read and to write what is there.
    pub files: Vec<PathBuf>,
    /// For everything.
    pub write: Vec<PathBuf>,
}

/// Whether the host's kernel has Landlock (5.13 and later, where it is built in and switched on).
pub fn can_confine() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes and makes nothing, it only answers.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) > 0 }
}

/// What [`enforce`] takes, made before the fork.
pub(super) fn prepare(paths: &Paths) -> io::Result<RulesetCreated> {
    let failed = |error: RulesetError| io::Error::other(format!("Landlock: {error}"));
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    let files = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    ruleset
        .add_rules(path_beneath_rules(&paths.read, AccessFs::from_read(KNOWN)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(&paths.files, files)))
        .and_then(|rules| {
            rules.add_rules(path_beneath_rules(&paths.write, AccessFs::from_all(KNOWN)))
        })
        .map_err(failed)
}

/// Confines the calling process: two system calls.
pub(super) fn enforce(ruleset: RulesetCreated) -> io::Result<()> {
    ruleset.restrict_self().map(drop).map_err(|_| io::ErrorKind::PermissionDenied.into())
}
