//! Taps, the guest's ends of the Pod's interfaces.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::net::if_::if_nametoindex;
use sandbox_netlink::{Netlink, number};

use crate::error::NetworkError;
use crate::sys;

/// `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;

/// A tap in this thread's network namespace; it is removed with its last descriptor.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) fd: OwnedFd,
    pub(crate) name: String,
    pub(crate) index: u32,
}

/// Creates a tap with this MTU. It is down, and the host's network stack will send nothing on it.
pub(crate) fn make(netlink: &mut Netlink, mtu: u32) -> Result<Tap, NetworkError> {
    let (fd, name) = sys::open_tap("tap%d").map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => NetworkError::Kernel {
            part: "tap devices (/dev/net/tun)",
            fix: "the module tun (CONFIG_TUN)",
            source,
        },
        _ => NetworkError::Link { verb: "making", name: "a tap".into(), source },
    })?;
    let failed = |verb| {
        let name = name.clone();
        move |source| NetworkError::Link { verb, name, source }
    };
    let index = if_nametoindex(name.as_str()).map_err(|e| failed("finding")(e.into()))?;
    let silence = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    match silence {
        // The host has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(failed("turning IPv6 off on"))?,
    }
    let set = netlink.change(RTM_NEWLINK, 0, &header(index, 0), &[number(IFLA_MTU, mtu)]);
    set.map_err(failed("setting the MTU of"))?;
    Ok(Tap { fd, name, index })
}

/// Brings the tap with this index up.
pub(crate) fn bring_up(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Link { verb: "bringing up", name: name.into(), source };
    netlink.change(RTM_NEWLINK, 0, &header(index, IFF_UP), &[]).map_err(failed)
}

/// Removes the tap with this index, even while it is open. Succeeds when it is gone.
pub(crate) fn remove(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    match netlink.change(RTM_DELLINK, 0, &header(index, 0), &[]) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// `struct ifinfomsg` that sets `flags`.
fn header(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, flags].iter().flat_map(|field| field.to_ne_bytes()).collect()
}
