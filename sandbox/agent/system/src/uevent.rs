//! Waits for devices by the kernel's uevents.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::error::{Doing, Result, late};

/// How long a device may take to appear.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The multicast group of the kernel's events.
const KERNEL_GROUP: u32 = 1;

/// Calls `look` now and after each uevent, until it finds the device. Blocks.
pub(crate) fn await_device<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    if let Some(found) = look()? {
        return Ok(found);
    }
    let listening = || "listening to the kernel's device events".to_owned();
    // Opened before the second look, so that no event is missed in between.
    let events = open().doing(listening)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(format!("{what} does not appear within {} s", TIMEOUT.as_secs())));
        }
        let mut ready = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).doing(listening),
        }
        drain(&events).doing(listening)?;
    }
}

fn open() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        flags,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(events)
}

/// Discards the queued events: the caller looks for its device itself.
fn drain(events: &OwnedFd) -> nix::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match recv(events.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
