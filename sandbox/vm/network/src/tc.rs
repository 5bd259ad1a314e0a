//! Traffic control: attaching programs to an interface's ingress and egress.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use sandbox_netlink::{
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, attribute, bytes, nested, number, text,
    u32_at,
};

/// `linux/rtnetlink.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h`.
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// Our filters come first, under a handle of their own.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 0xb01d;

/// Which frames a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Direction {
    /// Those that arrive on the interface.
    Ingress = 0xffff_fff2,
    /// Those that leave by it.
    Egress = 0xffff_fff3,
}

/// Adds a `clsact` qdisc to an interface. Returns whether there was none.
///
/// The older `ingress` qdisc has no egress, and runs egress programs on ingress.
pub(crate) fn open(netlink: &mut Netlink, link: u32) -> io::Result<bool> {
    let header = header(link, CLSACT_HANDLE, TC_H_CLSACT, 0);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match netlink.change(RTM_NEWQDISC, flags, &header, &[text(TCA_KIND, "clsact")]) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            let found = present(netlink, link)?;
            if found == "clsact" {
                return Ok(false);
            }
            Err(io::Error::other(format!("it has a queueing discipline {found}: remove it")))
        }
        Err(error) => Err(error),
    }
}

/// The kind of the qdisc in the place of a `clsact`.
fn present(netlink: &mut Netlink, link: u32) -> io::Result<String> {
    let all = netlink.dump(RTM_GETQDISC, RTM_NEWQDISC, HEADER)?;
    let is_it =
        |body: &&Vec<u8>| u32_at(body, 4) == Some(link) && u32_at(body, 12) == Some(TC_H_CLSACT);
    let kind = all.iter().find(is_it).and_then(|body| attribute(body, HEADER, TCA_KIND));
    let kind = kind.map(|kind| kind.strip_suffix(&[0]).unwrap_or(kind));
    Ok(String::from_utf8_lossy(kind.unwrap_or(b"that is hidden")).into_owned())
}

/// Removes the `clsact` qdisc with all programs. Succeeds when there is none.
pub(crate) fn close(netlink: &mut Netlink, link: u32) -> io::Result<()> {
    let header = header(link, CLSACT_HANDLE, TC_H_CLSACT, 0);
    gone(netlink.change(RTM_DELQDISC, 0, &header, &[]))
}

/// Attaches a program, replacing one of an earlier run.
pub(crate) fn attach(
    netlink: &mut Netlink,
    link: u32,
    direction: Direction,
    program: &OwnedFd,
) -> io::Result<()> {
    let options = [
        bytes(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
        text(TCA_BPF_NAME, "bulkhead"),
        number(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT),
    ];
    let attributes = [text(TCA_KIND, "bpf"), nested(TCA_OPTIONS, &options)];
    let header = header(link, HANDLE, direction as u32, info());
    netlink.change(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, &header, &attributes)
}

/// Detaches what [`attach`] attached. Succeeds when it is not there.
pub(crate) fn detach(netlink: &mut Netlink, link: u32, direction: Direction) -> io::Result<()> {
    let header = header(link, HANDLE, direction as u32, info());
    gone(netlink.change(RTM_DELTFILTER, 0, &header, &[text(TCA_KIND, "bpf")]))
}

/// `tcm_info` of a filter: its priority and the protocol it is for.
fn info() -> u32 {
    PRIORITY << 16 | u32::from(ETH_P_ALL.to_be())
}

/// `struct tcmsg`.
fn header(link: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, link, handle, parent, info].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// Removing something succeeds when the interface is gone or has no such thing.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if [libc::ENOENT, libc::ENODEV, libc::EINVAL]
                .map(Some)
                .contains(&error.raw_os_error()) =>
        {
            Ok(())
        }
        result => result,
    }
}
