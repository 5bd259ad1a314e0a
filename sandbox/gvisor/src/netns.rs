//! The Pod's addresses and routes. runsc moves them from the host's interfaces into its own
//! network stack; CNI plugins look for them when they remove the Pod's network (the bridge
//! plugin finds its masquerading rules by them). So they are read before runsc starts and put
//! back when the sandbox has exited.
//!
//! The kernel's own messages are kept and sent back as they are, as `ip address save` does.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use sandbox_core::{Classified, Kind};
use sandbox_netlink::{NLM_F_CREATE, NLM_F_REPLACE, Netlink, attribute, u32_at};
use sandbox_netns::{Namespace, NetnsError};
use serde::{Deserialize, Serialize};

/// `linux/rtnetlink.h`, `linux/if.h`, `linux/if_addr.h`: types of messages, lengths in bytes of their
/// headers, and what is looked for in them.
const RTM_SETLINK: u16 = 19;
const IFF_UP: u32 = 1;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const ADDRESS_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const ROUTE_HEADER: usize = 12;
const RTA_GATEWAY: u16 = 5;
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
        let mut netlink = Netlink::open().map_err(failed("opening netlink"))?;
        let mut addresses = netlink
            .dump(RTM_GETADDR, RTM_NEWADDR, ADDRESS_HEADER)
            .map_err(failed("reading addresses"))?;
        addresses.retain(|body| !is_loopback_address(body));
        let mut routes = netlink
            .dump(RTM_GETROUTE, RTM_NEWROUTE, ROUTE_HEADER)
            .map_err(failed("reading routes"))?;
        routes.retain(|body| is_worth_keeping(body));
        routes.sort_by_key(|body| has_gateway(body));
        Ok(SavedNetwork { netns: netns.to_owned(), addresses, routes })
    })
    .await
}

/// Brings up the loopback of a namespace that was made for the sandbox, as runc does: runsc gives a
/// sandbox only interfaces that are up.
///
/// # Errors
///
/// [`AddressError`] names the namespace and what was refused.
pub(crate) async fn loopback_up(netns: PathBuf) -> Result<(), AddressError> {
    inside(netns, |netns| {
        let failed = |source| AddressError::Netlink {
            verb: "bringing lo up",
            path: netns.to_owned(),
            source,
        };
        // `struct ifinfomsg`: the index, the flags, and which of them change.
        let header: Vec<u8> = [0, LOOPBACK_INDEX, IFF_UP, IFF_UP]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect();
        let mut netlink = Netlink::open().map_err(failed)?;
        netlink.change(RTM_SETLINK, 0, &header, &[]).map_err(failed)
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
        let mut netlink = Netlink::open().map_err(failed("opening netlink"))?;
        let mut first = Ok(());
        let addresses = saved.addresses.iter().map(|a| (RTM_NEWADDR, "putting back an address", a));
        let routes = saved.routes.iter().map(|r| (RTM_NEWROUTE, "putting back a route", r));
        for (kind, verb, body) in addresses.chain(routes) {
            let put = netlink.change(kind, NLM_F_CREATE | NLM_F_REPLACE, body, &[]);
            let done = put.or_else(already_so);
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

/// `ifaddrmsg.ifa_index`.
fn is_loopback_address(body: &[u8]) -> bool {
    u32_at(body, 4) == Some(LOOPBACK_INDEX)
}

/// Routes of the main table to other hosts; the kernel makes the rest itself.
fn is_worth_keeping(body: &[u8]) -> bool {
    body.get(4) == Some(&RT_TABLE_MAIN) && body.get(7) == Some(&RTN_UNICAST)
}

fn has_gateway(route: &[u8]) -> bool {
    attribute(route, ROUTE_HEADER, RTA_GATEWAY).is_some()
}

/// The address in the body of an `RTM_NEWADDR` message.
fn address(body: &[u8]) -> Option<IpAddr> {
    let value = |kind| attribute(body, ADDRESS_HEADER, kind);
    let value = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?;
    match value.len() {
        4 => Some(<[u8; 4]>::try_from(value).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sandbox_host::{Command, Host, RealHost, spawn_detached};

    use super::*;

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
        assert!(has_gateway(&route(RT_TABLE_MAIN, 1, RTA_GATEWAY)));
        assert!(!has_gateway(&route(RT_TABLE_MAIN, 1, 1)));
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

    /// Removes the namespace with this name when it is dropped.
    struct Removed(String);

    impl Drop for Removed {
        fn drop(&mut self) {
            let command = Command::new("ip").args(["netns", "del", &self.0]).outlives_parent();
            spawn_detached(command).unwrap();
        }
    }

    /// Runs `ip` and returns its output.
    async fn ip(args: &str) -> String {
        let command = Command::new("ip").args(args.split(' ')).outlives_parent();
        let output = RealHost::new().unwrap().run(command, Duration::from_secs(20)).await.unwrap();
        assert_eq!(output.exit.status, 0, "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[tokio::test]
    #[ignore = "needs netns, program:ip"]
    async fn a_namespace_gets_back_what_was_saved() {
        let name = format!("bhgvisor-{}", std::process::id());
        ip(&format!("netns add {name}")).await;
        let _removed = Removed(name.clone());
        let inside = async |args: &str| ip(&format!("-n {name} {args}")).await;
        inside("link add eth0 type veth peer name peer").await;
        inside("addr add 10.88.0.2/16 dev eth0").await;
        inside("addr add fd00::2/64 dev eth0 nodad").await;
        inside("link set peer up").await;
        inside("link set eth0 up").await;
        inside("route add default via 10.88.0.1 dev eth0 mtu 1400").await;
        inside("-6 route add default via fd00::1 dev eth0").await;
        let (addresses, routes) = ("-o addr show dev eth0 scope global", "route show dev eth0");
        let before = (inside(addresses).await, inside(routes).await);
        let saved = save(Path::new("/run/netns").join(&name)).await.unwrap();
        let kept: SavedNetwork =
            serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
        assert!(kept.addresses().contains(&"10.88.0.2".parse().unwrap()), "{kept:?}");
        assert!(kept.addresses().contains(&"fd00::2".parse().unwrap()), "{kept:?}");

        inside("addr flush dev eth0").await;
        assert_eq!((inside(addresses).await, inside(routes).await), Default::default());
        restore(kept.clone()).await.unwrap();
        assert_eq!((inside(addresses).await, inside(routes).await), before);
        assert!(inside("-6 route show default").await.contains("via fd00::1"));
        restore(kept).await.expect("what is there stays");
        assert_eq!((inside(addresses).await, inside(routes).await), before);
    }
}
