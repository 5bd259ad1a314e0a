//! The configuration that the CNI plugins made in the Pod's network namespace.

use std::io;
use std::net::IpAddr;

use sandbox_netlink::{Netlink, attribute, u16_at, u32_at};

use crate::error::NetworkError;

/// `linux/rtnetlink.h` and the headers of its messages: type of the dump, of its answers, and
/// the length of the fixed part.
const LINK: (u16, u16, usize) = (18, 16, 16);
const ADDRESS: (u16, u16, usize) = (22, 20, 8);
const ROUTE: (u16, u16, usize) = (26, 24, 12);
const NEIGHBOUR: (u16, u16, usize) = (30, 28, 12);

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RTNH_F_ONLINK: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u32 = 254;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 8;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// As `ip -details link` shows it; empty for hardware.
    pub(crate) kind: String,
    /// `ARPHRD_*`.
    pub(crate) hardware: u16,
    /// `IFF_*`.
    pub(crate) flags: u32,
    pub(crate) mtu: u32,
    /// Empty when it has none.
    pub(crate) mac: Vec<u8>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    /// `IFA_F_*`.
    pub(crate) flags: u32,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) link: u32,
    pub(crate) ipv6: bool,
    /// Absent for the default route.
    pub(crate) destination: Option<(IpAddr, u8)>,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) scope: u8,
    pub(crate) protocol: u8,
    pub(crate) priority: u32,
    pub(crate) onlink: bool,
    pub(crate) mtu: u32,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: Vec<u8>,
}

/// The configuration of a namespace's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
}

impl Snapshot {
    /// Reads this thread's network namespace.
    pub(crate) fn read(netlink: &mut Netlink) -> Result<Self, NetworkError> {
        let mut dump = |what, (question, answer, header)| {
            let bodies = netlink.dump(question, answer, header);
            bodies.map_err(|source| NetworkError::Read { what, source })
        };
        let addresses = dump("addresses", ADDRESS)?;
        let routes = dump("routes", ROUTE)?;
        let neighbours = dump("neighbours", NEIGHBOUR)?;
        Ok(Self {
            links: links(netlink)
                .map_err(|source| NetworkError::Read { what: "interfaces", source })?,
            addresses: addresses.iter().filter_map(|body| address(body)).collect(),
            routes: routes.iter().filter_map(|body| route(body)).collect(),
            neighbours: neighbours.iter().filter_map(|body| neighbour(body)).collect(),
        })
    }
}

/// Every interface of this thread's network namespace.
pub(crate) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let (question, answer, header) = LINK;
    let bodies = netlink.dump(question, answer, header)?;
    Ok(bodies.iter().filter_map(|body| link(body)).collect())
}

fn link(body: &[u8]) -> Option<Link> {
    let find = |kind| attribute(body, LINK.2, kind);
    let kind = find(IFLA_LINKINFO).and_then(|info| attribute(info, 0, IFLA_INFO_KIND));
    Some(Link {
        index: u32_at(body, 4)?,
        name: string(find(IFLA_IFNAME)?),
        kind: kind.map(string).unwrap_or_default(),
        hardware: u16_at(body, 2)?,
        flags: u32_at(body, 8)?,
        mtu: u32_at(find(IFLA_MTU)?, 0)?,
        mac: find(IFLA_ADDRESS).unwrap_or_default().to_vec(),
    })
}

fn address(body: &[u8]) -> Option<Address> {
    let find = |kind| attribute(body, ADDRESS.2, kind);
    let flags = find(IFA_FLAGS).and_then(|value| u32_at(value, 0));
    Some(Address {
        link: u32_at(body, 4)?,
        // Between two ends the own one is the local one; IPv6 has no other.
        ip: ip(find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?)?,
        prefix: *body.get(1)?,
        flags: flags.unwrap_or(u32::from(*body.get(2)?)),
    })
}

/// A unicast route of the main table. Those that the guest cannot have are left out with a warning.
fn route(body: &[u8]) -> Option<Route> {
    let find = |kind| attribute(body, ROUTE.2, kind);
    let number = |kind| find(kind).and_then(|value| u32_at(value, 0));
    let family = i32::from(*body.first()?);
    let (length, source_length, kind) = (*body.get(1)?, *body.get(2)?, *body.get(7)?);
    let table = number(RTA_TABLE).unwrap_or(u32::from(*body.get(4)?));
    if table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    if source_length != 0 || (family != libc::AF_INET && family != libc::AF_INET6) {
        tracing::warn!(
            "a route of the Pod by source or for addresses of family {family} is left out"
        );
        return None;
    }
    let mut hop = Hop {
        link: number(RTA_OIF),
        gateway: find(RTA_GATEWAY).and_then(ip).or_else(|| find(RTA_VIA).and_then(via)),
        flags: u32_at(body, 8)? as u8,
    };
    if let Some(hops) = find(RTA_MULTIPATH) {
        hop = Hop::first(hops)?;
        if usize::from(u16_at(hops, 0)?) < hops.len() {
            tracing::warn!("of a route of the Pod with several gateways only the first is used");
        }
    }
    Some(Route {
        link: hop.link?,
        ipv6: family == libc::AF_INET6,
        destination: find(RTA_DST).and_then(ip).map(|ip| (ip, length)),
        gateway: hop.gateway,
        source: find(RTA_PREFSRC).and_then(ip),
        scope: *body.get(6)?,
        protocol: *body.get(5)?,
        priority: number(RTA_PRIORITY).unwrap_or(0),
        onlink: hop.flags & RTNH_F_ONLINK != 0,
        mtu: find(RTA_METRICS)
            .and_then(|metrics| u32_at(attribute(metrics, 0, RTAX_MTU)?, 0))
            .unwrap_or(0),
    })
}

/// Where a route leads first.
struct Hop {
    link: Option<u32>,
    gateway: Option<IpAddr>,
    flags: u8,
}

impl Hop {
    /// The first `struct rtnexthop` of several.
    fn first(hops: &[u8]) -> Option<Self> {
        let length = usize::from(u16_at(hops, 0)?);
        let hop = hops.get(..length)?;
        let find = |kind| attribute(hop, 8, kind);
        Some(Self {
            link: u32_at(hop, 4),
            gateway: find(RTA_GATEWAY).and_then(ip).or_else(|| find(RTA_VIA).and_then(via)),
            flags: *hop.get(2)?,
        })
    }
}

fn neighbour(body: &[u8]) -> Option<Neighbour> {
    let permanent = u16_at(body, 8)? & NUD_PERMANENT != 0;
    if !permanent || body.get(10)? & NTF_PROXY != 0 {
        return None;
    }
    Some(Neighbour {
        link: u32_at(body, 4)?,
        ip: ip(attribute(body, NEIGHBOUR.2, NDA_DST)?)?,
        mac: attribute(body, NEIGHBOUR.2, NDA_LLADDR)?.to_vec(),
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `struct rtvia`: an address of another family than the route's.
fn via(bytes: &[u8]) -> Option<IpAddr> {
    ip(bytes.get(2..)?)
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use sandbox_netlink::{body as message, bytes as raw, nested, number};

    use super::*;

    #[test]
    fn reads_a_route_with_everything() {
        let header = [2, 16, 0, 0, 254, 4, 0, 1, 4, 0, 0, 0];
        let attributes = [
            raw(RTA_DST, &[10, 1, 0, 0]),
            number(RTA_OIF, 7),
            raw(RTA_GATEWAY, &[169, 254, 1, 1]),
            raw(RTA_PREFSRC, &[10, 1, 2, 3]),
            number(RTA_PRIORITY, 50),
            nested(RTA_METRICS, &[number(RTAX_MTU, 1400)]),
        ];
        let expected = Route {
            link: 7,
            ipv6: false,
            destination: Some(([10, 1, 0, 0].into(), 16)),
            gateway: Some([169, 254, 1, 1].into()),
            source: Some([10, 1, 2, 3].into()),
            scope: 0,
            protocol: 4,
            priority: 50,
            onlink: true,
            mtu: 1400,
        };
        assert_eq!(route(&message(&header, &attributes)), Some(expected));
    }

    #[test]
    fn leaves_out_routes_that_a_guest_has_no_use_for() {
        let attributes = [number(RTA_OIF, 7)];
        let header = |table, kind, source| [2, 0, source, 0, table, 4, 0, kind, 0, 0, 0, 0];
        assert!(route(&message(&header(254, 1, 0), &attributes)).is_some());
        assert!(route(&message(&header(255, 1, 0), &attributes)).is_none(), "local table");
        assert!(route(&message(&header(254, 6, 0), &attributes)).is_none(), "black hole");
        assert!(route(&message(&header(254, 1, 8), &attributes)).is_none(), "by source");
        let other = [number(RTA_OIF, 7), number(RTA_TABLE, 1000)];
        assert!(route(&message(&header(252, 1, 0), &other)).is_none(), "numbered table");
        assert!(route(&message(&header(254, 1, 0), &[])).is_none(), "no interface");
    }

    #[test]
    fn takes_the_first_of_several_gateways_and_gateways_of_another_family() {
        let header = [2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let mut hops = Vec::new();
        for (link, last) in [(3u8, 1u8), (4, 2)] {
            hops.extend([16, 0, 4, 0, link, 0, 0, 0]);
            hops.extend([8, 0, 5, 0, 10, 0, 0, last]);
        }
        let found = route(&message(&header, &[raw(RTA_MULTIPATH, &hops)])).unwrap();
        assert_eq!((found.link, found.gateway), (3, Some([10, 0, 0, 1].into())));
        assert!(found.onlink);
        let via = [&[10, 0][..], &[0xfe, 0x80], &[0; 13], &[1]].concat();
        let found = route(&message(&header, &[number(RTA_OIF, 3), raw(RTA_VIA, &via)])).unwrap();
        assert_eq!(found.gateway, Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn keeps_permanent_neighbours_only() {
        let header = |state, flags| [2, 0, 0, 0, 7, 0, 0, 0, state, 0, flags, 0];
        let attributes = [raw(NDA_DST, &[10, 0, 0, 1]), raw(NDA_LLADDR, &[2, 0, 0, 0, 0, 1])];
        assert!(neighbour(&message(&header(0x80, 0), &attributes)).is_some());
        assert!(neighbour(&message(&header(0x02, 0), &attributes)).is_none(), "learnt");
        assert!(neighbour(&message(&header(0x80, 8), &attributes)).is_none(), "proxy");
        assert!(neighbour(&message(&header(0x80, 0), &attributes[..1])).is_none(), "no MAC");
    }

    #[test]
    fn takes_the_local_address_of_a_point_to_point_link() {
        let ends = [raw(IFA_ADDRESS, &[10, 0, 0, 1]), raw(IFA_LOCAL, &[10, 0, 0, 2])];
        let found = address(&message(&[2, 32, 0x80, 0, 7, 0, 0, 0], &ends)).unwrap();
        assert_eq!((found.ip, found.prefix, found.flags), ([10, 0, 0, 2].into(), 32, 0x80));
    }
}
