//! A tap to plug in.

#![allow(unsafe_code, reason = "no safe crate makes a tap")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// A tap in a network namespace of its own.
pub(super) struct Tap {
    pub(super) fd: OwnedFd,
    /// Keeps the namespace alive; the path is valid in this process only.
    pub(super) netns: (OwnedFd, PathBuf),
}

impl Tap {
    pub(super) fn new() -> Self {
        std::thread::spawn(Self::make).join().unwrap().unwrap()
    }

    fn make() -> std::io::Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        let netns = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net")?);
        let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: an ifreq of zeros is a valid one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
        Ok(Self { fd: tun.into(), netns: (netns, path) })
    }
}
