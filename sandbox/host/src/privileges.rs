//! Dropping capabilities and changing the user between fork and exec: no allocation, no lock.

#![allow(unsafe_code, reason = "neither std nor nix wraps capabilities")]

use std::io;

use crate::command::User;

/// `_LINUX_CAPABILITY_VERSION_3` (capget(2)): two words of 32 capabilities each.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the calling thread's bounding and inheritable sets (and with the latter the ambient
/// one) and sets `no_new_privs`. The permitted set is emptied by exec, for UID 0 as well
/// (capabilities(7), "Transformation of capabilities").
pub(crate) fn drop_capabilities() -> io::Result<()> {
    for capability in 0..=63_u64 {
        // SAFETY: prctl with PR_CAPBSET_DROP takes plain numbers and touches no memory of ours.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                break; // Beyond the last capability of this kernel.
            }
            return Err(error);
        }
    }
    let mut header = Header { version: VERSION, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: version 3 reads one header and writes two words, which `words` has.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for word in &mut words {
        word.inheritable = 0;
    }
    // SAFETY: as above; the kernel only reads.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// Changes user and groups of the calling thread, the only one of its process. The C library's
/// functions would take a lock to signal the other threads, which a forked child does not have.
pub(crate) fn become_user(user: &User) -> io::Result<()> {
    let groups = &user.groups;
    let id = libc::c_ulong::from(user.id);
    // SAFETY: the kernel reads `groups.len()` numbers from a slice of that length.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // The group first: without UID 0 it can no longer be changed.
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: both take plain numbers and touch no memory of ours.
        if unsafe { libc::syscall(call, id, id, id) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
