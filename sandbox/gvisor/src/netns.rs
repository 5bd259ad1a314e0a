//! The Pod's addresses and routes. runsc moves them from the host's interfaces into its own
//! network stack; CNI plugins look for them when they remove the Pod's network (the bridge
//! plugin finds its masquerading rules by them). So they are read before runsc starts and put
//! back when the sandbox has exited.
//!
//! The kernel's own messages are kept and sent back as they are, as `ip address save` does.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};
use sandbox_core::{Classified, Kind};
use sandbox_netns::{Namespace, NetnsError};
use serde::{Deserialize, Serialize};

/// Netlink's message types, flags and lengths (`linux/netlink.h`, `linux/rtnetlink.h`).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const HEADER: usize = 16;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const LOOPBACK_INDEX: u32 = 1;

/// What a Pod's network namespace held before runsc took it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedNetwork {
    /// The namespace's path.
    netns: PathBuf,
    /// Bodies of `RTM_NEWADDR` messages.
    addresses: Vec<Vec<u8>>,
    /// Bodies of `RTM_NEWROUTE` messages, gateways after the links they are reached by.
    routes: Vec<Vec<u8>>,
}

impl SavedNetwork {
    /// The addresses that others reach the Pod by: those of a link alone are not among them.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let of_link = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        self.addresses.iter().filter_map(|body| address(body)).filter(|ip| !of_link(ip)).collect()
    }
}

/// Why addresses could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error(transparent)]
    Enter(#[from] NetnsError),
    #[error("{verb} in network namespace {path}")]
    Netlink { verb: &'static str, path: PathBuf, source: io::Error },
}

impl Classified for AddressError {
    fn kind(&self) -> Kind {
        match self {
            Self::Enter(error) => error.kind(),
            Self::Netlink { .. } => Kind::Internal,
        }
    }
}

/// Reads the addresses and routes of the namespace at `netns`.
///
/// # Errors
///
/// [`AddressError`] names the namespace and what was refused.
pub(crate) async fn save(netns: PathBuf) -> Result<SavedNetwork, AddressError> {
    inside(netns, |netns| {
        let failed = |verb| {
            move |source: io::Error| AddressError::Netlink { verb, path: netns.to_owned(), source }
        };
        let mut addresses =
            dump(RTM_GETADDR, RTM_NEWADDR, 8).map_err(failed("reading addresses"))?;
        addresses.retain(|body| !is_loopback_address(body));
        let mut routes = dump(RTM_GETROUTE, RTM_NEWROUTE, 12).map_err(failed("reading routes"))?;
        routes.retain(|body| is_worth_keeping(body));
        routes.sort_by_key(|body| has_attribute(body, 12, RTA_GATEWAY));
        Ok(SavedNetwork { netns: netns.to_owned(), addresses, routes })
    })
    .await
}

/// Puts back what [`save`] read. A namespace that is gone needs nothing, and what is still (or
/// again) there stays.
///
/// # Errors
///
/// [`AddressError`] names the namespace and what was refused first; everything else was tried.
pub(crate) async fn restore(saved: SavedNetwork) -> Result<(), AddressError> {
    if !saved.netns.exists() || (saved.addresses.is_empty() && saved.routes.is_empty()) {
        return Ok(());
    }
    inside(saved.netns.clone(), move |netns| {
        let failed = |verb| {
            move |source: io::Error| AddressError::Netlink { verb, path: netns.to_owned(), source }
        };
        let link = open().map_err(failed("opening netlink"))?;
        let mut first = Ok(());
        let addresses = saved.addresses.iter().map(|a| (RTM_NEWADDR, "putting back an address", a));
        let routes = saved.routes.iter().map(|r| (RTM_NEWROUTE, "putting back a route", r));
        for (kind, verb, body) in addresses.chain(routes) {
            let put = request(&link, kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body);
            let done = put.and_then(|()| acknowledged(&link)).or_else(already_so);
            first = first.and(done.map_err(failed(verb)));
        }
        first
    })
    .await
}

/// The interface may be gone already (its peer was removed); then there is nothing to put back.
fn already_so(error: io::Error) -> io::Result<()> {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EEXIST | Errno::ENODEV => Ok(()),
        _ => Err(error),
    }
}

async fn inside<T: Send + 'static>(
    netns: PathBuf,
    work: impl FnOnce(&Path) -> Result<T, AddressError> + Send + 'static,
) -> Result<T, AddressError> {
    let namespace = Namespace::open(&netns)?;
    let path = netns.clone();
    sandbox_netns::inside(&netns, namespace, move |_| work(&path)).await
}

fn open() -> io::Result<OwnedFd> {
    let link = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(link.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(link)
}

/// Every message of type `answer` in the reply to the dump `question`, without its header. `length` is
/// that of the question's own body.
fn dump(question: u16, answer: u16, length: usize) -> io::Result<Vec<Vec<u8>>> {
    let link = open()?;
    request(&link, question, NLM_F_DUMP, &vec![0; length])?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..read]) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => error_code(body)?,
                kind if kind == answer => found.push(body.to_vec()),
                _ => {}
            }
        }
    }
}

fn request(link: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: each request has its answer read before the next.
    message.extend([0; 8]);
    message.extend(body);
    sendto(link.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

fn acknowledged(link: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 13];
    let read = recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = messages(&buffer[..read]).find(|(kind, _)| *kind == NLMSG_ERROR);
    answer.map_or(Ok(()), |(_, body)| error_code(body))
}

/// Types and bodies of the messages in `bytes`.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let body = bytes.get(HEADER..length)?;
        let kind = u16_at(bytes, 4)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, body))
    })
}

/// The code in an `NLMSG_ERROR`'s body: 0 is an acknowledgement.
fn error_code(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `ifaddrmsg.ifa_index`.
fn is_loopback_address(body: &[u8]) -> bool {
    u32_at(body, 4) == Some(LOOPBACK_INDEX)
}

const RTA_GATEWAY: u16 = 5;
/// `linux/if_addr.h`.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Routes of the main table to other hosts; the kernel makes the rest itself.
fn is_worth_keeping(body: &[u8]) -> bool {
    body.get(4) == Some(&RT_TABLE_MAIN) && body.get(7) == Some(&RTN_UNICAST)
}

/// Whether the attributes after the first `start` bytes hold one of type `wanted`.
fn has_attribute(body: &[u8], start: usize, wanted: u16) -> bool {
    attribute(body, start, wanted).is_some()
}

/// The value of the attribute of type `wanted` after the first `start` bytes.
fn attribute(body: &[u8], start: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(start..)?;
    loop {
        let length = u16_at(rest, 0)?.max(4);
        let kind = u16_at(rest, 2)?;
        if kind == wanted {
            return rest.get(4..usize::from(length));
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..)?;
    }
}

/// The address in the body of an `RTM_NEWADDR` message.
fn address(body: &[u8]) -> Option<IpAddr> {
    let value = attribute(body, 8, IFA_LOCAL).or_else(|| attribute(body, 8, IFA_ADDRESS))?;
    match value.len() {
        4 => Some(<[u8; 4]>::try_from(value).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_messages_and_stops_at_nonsense() {
        let mut bytes = Vec::new();
        for (kind, body) in [(RTM_NEWADDR, &[1u8, 2, 3][..]), (NLMSG_DONE, &[0; 4])] {
            bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read, [(RTM_NEWADDR, &[1u8, 2, 3][..]), (NLMSG_DONE, &[0; 4][..])]);
        assert_eq!(messages(&bytes[..18]).count(), 0, "cut short");
        assert_eq!(messages(&[4, 0, 0, 0, 1, 0, 0, 0]).count(), 0, "shorter than a header");
    }

    #[test]
    fn keeps_routes_in_an_order_that_works() {
        let route = |table: u8, kind: u8, attribute: u16| {
            let mut body = vec![2, 0, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
            body.extend(8u16.to_ne_bytes());
            body.extend(attribute.to_ne_bytes());
            body.extend([10, 0, 0, 1]);
            body
        };
        assert!(is_worth_keeping(&route(RT_TABLE_MAIN, RTN_UNICAST, 1)));
        assert!(!is_worth_keeping(&route(255, RTN_UNICAST, 1)), "the local table");
        assert!(!is_worth_keeping(&route(RT_TABLE_MAIN, 3, 1)), "a broadcast route");
        assert!(has_attribute(&route(RT_TABLE_MAIN, 1, RTA_GATEWAY), 12, RTA_GATEWAY));
        assert!(!has_attribute(&route(RT_TABLE_MAIN, 1, 1), 12, RTA_GATEWAY));
    }

    #[test]
    fn refusals_that_change_nothing_are_no_errors() {
        let errno = |code: i32| io::Error::from_raw_os_error(code);
        assert!(already_so(errno(libc::EEXIST)).is_ok());
        assert!(already_so(errno(libc::ENODEV)).is_ok());
        assert!(already_so(errno(libc::EPERM)).is_err());
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_needs_nothing() {
        let saved = SavedNetwork {
            netns: "/nonexistent/netns".into(),
            addresses: vec![vec![0; 8]],
            routes: vec![],
        };
        restore(saved).await.unwrap();
        let missing = save("/nonexistent/netns".into()).await.unwrap_err();
        assert_eq!(missing.kind(), Kind::InvalidArgument);
    }
}
