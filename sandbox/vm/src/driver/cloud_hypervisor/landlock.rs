//! Whether the host's kernel has the Landlock that cloud-hypervisor insists on.

#![allow(unsafe_code, reason = "there is no wrapper for this system call")]

/// The version with all the rights that cloud-hypervisor handles: Linux 6.2's.
const NEEDED: libc::c_long = 3;
/// `LANDLOCK_CREATE_RULESET_VERSION` (landlock_create_ruleset(2)).
const VERSION: libc::c_long = 1;

/// Whether Landlock can be had.
pub(in super::super) fn available() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes and makes nothing, it only answers.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    version >= NEEDED
}
