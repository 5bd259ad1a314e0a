//! Creating a tap, for which no crate has a safe call. This is all the unsafe code of this crate.

#![allow(unsafe_code, reason = "each block names what keeps it sound")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Creates a tap with virtio-net headers and one queue in this thread's network namespace, and
/// returns its descriptor and name: the first free one of `template` (`tap%d`). It is removed when
/// its last descriptor is closed.
pub(crate) fn open_tap(template: &str) -> io::Result<(OwnedFd, String)> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all of its fields are integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: it ends the name.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(template.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and keeps no reference.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8);
    let name = String::from_utf8(name.collect()).map_err(io::Error::other)?;
    Ok((file.into(), name))
}
