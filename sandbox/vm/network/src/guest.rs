//! The guest's network, planned from a snapshot of the Pod's namespace. All of it is pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bpf::{Rewrite, Sources};
use crate::error::NetworkError;
use crate::snapshot::{self, Address, Link, Snapshot};

/// `linux/if_arp.h`, `linux/if.h`, `linux/if_addr.h`, `linux/rtnetlink.h`.
const ARPHRD_ETHER: u16 = 1;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_NOARP: u32 = 1 << 7;
const IFA_F_TEMPORARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const RTPROT_REDIRECT: u8 = 1;
const RTPROT_KERNEL: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// Gateways for links without ARP; packets to them never leave the Pod.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The configuration of the guest's network: that of the Pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestNetwork {
    /// One for each interface of the Pod that has an address.
    pub interfaces: Vec<Interface>,
    /// The routes, in an order in which they can be added: those without a gateway first.
    pub routes: Vec<Route>,
    /// Permanent neighbour entries.
    pub neighbours: Vec<Neighbour>,
}

/// A network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name, that of the Pod's interface.
    pub name: String,
    /// The Ethernet address by which the guest finds it.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
}

/// A route of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; `None` for the default route.
    pub destination: Option<Prefix>,
    /// The gateway, if the destination is not on the link.
    pub gateway: Option<IpAddr>,
    /// The interface's name.
    pub interface: String,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `RTPROT_*`: what added it.
    pub protocol: u8,
    /// Its metric.
    pub priority: u32,
    /// Whether the gateway is taken as on the link without a route to it.
    pub onlink: bool,
    /// Whether it is for IPv6, which the default route does not show.
    pub ipv6: bool,
    /// Its path MTU in bytes; 0 for that of the interface.
    pub mtu: u32,
}

/// A neighbour's address that is not resolved by ARP or neighbour discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its IP address.
    pub ip: IpAddr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The interface's name.
    pub interface: String,
}

/// An address with the length of its prefix, shown as `10.1.2.3/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// The prefix length in bits.
    pub length: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

/// An interface of the Pod, as the guest is to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) link: Link,
    /// The guest's Ethernet address.
    pub(crate) mac: [u8; 6],
    /// The destination of the guest's frames on a link without ARP; `None` where there is ARP.
    pub(crate) peer: Option<[u8; 6]>,
    /// The addresses that the guest may send from.
    pub(crate) sources: Sources,
}

impl Endpoint {
    /// The Ethernet addresses of frames to the guest, where they are rewritten.
    pub(crate) fn inwards(&self) -> Option<Rewrite> {
        self.peer.map(|peer| Rewrite { to: self.mac, from: peer })
    }

    /// The Ethernet addresses of frames from the guest, where they are rewritten: those that the
    /// host's kernel writes on a link without ARP.
    pub(crate) fn outwards(&self) -> Option<Rewrite> {
        let own = ethernet(&self.link).unwrap_or_default();
        self.peer.map(|_| Rewrite { to: own, from: own })
    }
}

/// The interfaces to join: those that are up, have an address, and are not the loopback.
pub(crate) fn endpoints(snapshot: &Snapshot) -> Result<Vec<Endpoint>, NetworkError> {
    let mut endpoints = Vec::new();
    for link in &snapshot.links {
        let addressed = snapshot.addresses.iter().any(|address| address.link == link.index);
        if link.flags & IFF_LOOPBACK != 0 || !addressed {
            continue;
        }
        if link.flags & IFF_UP == 0 {
            tracing::warn!(interface = link.name, "an interface of the Pod is down and left out");
            continue;
        }
        let number = u8::try_from(endpoints.len() + 1).unwrap_or(u8::MAX);
        endpoints.push(endpoint(snapshot, link, number)?);
    }
    Ok(endpoints)
}

fn endpoint(snapshot: &Snapshot, link: &Link, number: u8) -> Result<Endpoint, NetworkError> {
    if link.hardware != ARPHRD_ETHER {
        let kind = if link.kind.is_empty() { "hardware" } else { &link.kind };
        return Err(NetworkError::NotEthernet { name: link.name.clone(), kind: kind.into() });
    }
    // In their L3 modes ipvlan and netkit have no ARP. ipvlan has the Ethernet address of its
    // parent; netkit has none, and the one made up for the guest never leaves the Pod.
    let arp = link.flags & IFF_NOARP == 0;
    let own = ethernet(link).filter(|mac| mac != &[0; 6]);
    let mac = own.unwrap_or([0x02, b'b', b'h', 0, 0, number]);
    let peer = (!arp || own.is_none()).then_some([0x02, b'b', b'h', 0, 1, number]);
    let (mut v4, mut v6) = (Vec::new(), vec![link_local(mac)]);
    for address in snapshot.addresses.iter().filter(|address| address.link == link.index) {
        match address.ip {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    v6.dedup();
    let sources = Sources { mac, arp: peer.is_none(), v4, v6 };
    Ok(Endpoint { link: link.clone(), mac, peer, sources })
}

/// The guest's network, of which `endpoints` are the interfaces.
pub(crate) fn network(snapshot: &Snapshot, endpoints: &[Endpoint]) -> GuestNetwork {
    let mut network = GuestNetwork::default();
    for endpoint in endpoints {
        let own = |link: u32| link == endpoint.link.index;
        let name = &endpoint.link.name;
        let addresses = snapshot.addresses.iter().filter(|a| own(a.link) && is_for_guest(a));
        let addresses: Vec<Prefix> = addresses
            .map(|address| Prefix { ip: address.ip, length: prefix(snapshot, endpoint, address) })
            .collect();
        let on_link: Vec<(IpAddr, u8)> = addresses
            .iter()
            .map(|prefix| (masked(prefix.ip, prefix.length), prefix.length))
            .collect();
        network.interfaces.push(Interface {
            name: name.clone(),
            mac: endpoint.mac,
            mtu: endpoint.link.mtu,
            addresses,
        });
        let routes =
            snapshot.routes.iter().filter(|r| own(r.link) && !is_made_by_guest(r, &on_link));
        network.routes.extend(routes.map(|r| route(endpoint, r)));
        let neighbours = snapshot.neighbours.iter().filter(|n| own(n.link));
        let known = neighbours.filter_map(|n| Some((n.ip, n.mac.as_slice().try_into().ok()?)));
        let gateways = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];
        let made_up = endpoint.peer.iter().flat_map(|mac| gateways.map(|ip| (ip, *mac)));
        for (ip, mac) in known.chain(made_up) {
            network.neighbours.push(Neighbour { ip, mac, interface: name.clone() });
        }
    }
    // A gateway must be reachable before it is one.
    network.routes.sort_by_key(|route| route.gateway.is_some());
    network
}

/// Whether the guest is configured with an address: it creates link-local ones itself, and temporary
/// ones are short-lived.
fn is_for_guest(address: &Address) -> bool {
    let link_local = matches!(address.ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !link_local && address.flags & (IFA_F_TEMPORARY | IFA_F_DADFAILED) == 0
}

/// The prefix length of the guest's address. A kernel adds a route to the whole prefix of every
/// address; where the plugin removed that route (as `ptp` does), or the link has no ARP, the guest
/// must not have it either.
fn prefix(snapshot: &Snapshot, endpoint: &Endpoint, address: &Address) -> u8 {
    let whole = (masked(address.ip, address.prefix), address.prefix);
    let on_link = snapshot.routes.iter().any(|route| {
        route.link == address.link
            && route.protocol == RTPROT_KERNEL
            && route.gateway.is_none()
            && route.destination == Some(whole)
    });
    let host = if address.ip.is_ipv4() { 32 } else { 128 };
    if endpoint.peer.is_none() && on_link { address.prefix } else { host }
}

/// Whether the guest's kernel adds a route itself: to the prefixes of its addresses, link-local
/// ones included, and redirects.
fn is_made_by_guest(route: &snapshot::Route, prefixes: &[(IpAddr, u8)]) -> bool {
    let Some((ip, length)) = route.destination else {
        return route.protocol == RTPROT_REDIRECT;
    };
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let own = route.protocol == RTPROT_KERNEL && prefixes.contains(&(ip, length));
    own || (link_local && route.protocol == RTPROT_KERNEL) || route.protocol == RTPROT_REDIRECT
}

fn route(endpoint: &Endpoint, found: &snapshot::Route) -> Route {
    let mut route = Route {
        destination: found.destination.map(|(ip, length)| Prefix { ip, length }),
        gateway: found.gateway,
        interface: endpoint.link.name.clone(),
        source: found.source,
        scope: found.scope,
        protocol: found.protocol,
        priority: found.priority,
        onlink: found.onlink,
        ipv6: found.ipv6,
        mtu: found.mtu,
    };
    if endpoint.peer.is_some() {
        // Every address is behind the one peer of this link: one gateway serves all routes.
        let gateway = if found.ipv6 { GATEWAY_V6.into() } else { IpAddr::V4(GATEWAY_V4) };
        route.gateway = Some(gateway);
        route.onlink = true;
        route.scope = RT_SCOPE_UNIVERSE;
    }
    route
}

fn ethernet(link: &Link) -> Option<[u8; 6]> {
    link.mac.as_slice().try_into().ok()
}

/// The link-local address that a kernel makes of an Ethernet address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn masked(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn link(kind: &str, flags: u32, mac: &[u8]) -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            kind: kind.into(),
            hardware: ARPHRD_ETHER,
            flags: IFF_UP | flags,
            mtu: 1500,
            mac: mac.to_vec(),
        }
    }

    fn address(text: &str, prefix: u8, flags: u32) -> Address {
        Address { link: 2, ip: text.parse().unwrap(), prefix, flags }
    }

    fn kernels(destination: &str, length: u8) -> snapshot::Route {
        let ip: IpAddr = destination.parse().unwrap();
        snapshot::Route {
            link: 2,
            ipv6: ip.is_ipv6(),
            destination: Some((ip, length)),
            gateway: None,
            source: None,
            scope: 253,
            protocol: RTPROT_KERNEL,
            priority: 0,
            onlink: false,
            mtu: 0,
        }
    }

    fn default_by(gateway: &str) -> snapshot::Route {
        let gateway: IpAddr = gateway.parse().unwrap();
        let ipv6 = gateway.is_ipv6();
        let route = kernels("0.0.0.0", 0);
        snapshot::Route {
            gateway: Some(gateway),
            destination: None,
            scope: 0,
            protocol: 3,
            ipv6,
            ..route
        }
    }

    fn pod(link: Link) -> Snapshot {
        Snapshot {
            links: vec![link],
            addresses: vec![
                address("10.1.2.3", 24, 0),
                address("fd00::3", 64, 0),
                address("fe80::7", 64, 0),
            ],
            routes: vec![
                default_by("10.1.2.1"),
                kernels("10.1.2.0", 24),
                kernels("fd00::", 64),
                kernels("fe80::", 64),
                default_by("fd00::1"),
            ],
            neighbours: vec![],
        }
    }

    fn lines(network: &GuestNetwork) -> Vec<String> {
        let route = |r: &Route| {
            let to = r.destination.map_or("default".to_owned(), |to| to.to_string());
            let onlink = if r.onlink { " onlink" } else { "" };
            let gateway = r.gateway.map(|ip| ip.to_string()).unwrap_or_default();
            format!("{to} via {gateway} scope {}{onlink}", r.scope)
        };
        network.routes.iter().map(route).collect()
    }

    fn addresses(network: &GuestNetwork) -> Vec<String> {
        network.interfaces[0].addresses.iter().map(Prefix::to_string).collect()
    }

    #[test]
    fn ipvlan_l2_has_its_parents_address_and_ordinary_routes() {
        let snapshot = pod(link("ipvlan", 0, &PARENT));
        let endpoints = endpoints(&snapshot).unwrap();
        assert_eq!((endpoints[0].mac, endpoints[0].peer), (PARENT, None));
        assert!(endpoints[0].sources.arp);
        assert_eq!((endpoints[0].inwards(), endpoints[0].outwards()), (None, None));
        // The link-local address of the interface, which ipvlan knows, and that of the guest.
        let v6 = ["fe80::5054:ff:fe01:203", "fd00::3", "fe80::7"]
            .map(|ip| ip.parse::<Ipv6Addr>().unwrap());
        assert_eq!(endpoints[0].sources.v6, v6);
        let network = network(&snapshot, &endpoints);
        assert_eq!(addresses(&network), ["10.1.2.3/24", "fd00::3/64"]);
        assert_eq!(
            lines(&network),
            ["default via 10.1.2.1 scope 0", "default via fd00::1 scope 0"]
        );
        assert_eq!(network.neighbours, []);
    }

    #[test]
    fn without_arp_one_gateway_in_the_pod_stands_for_all() {
        let snapshot = pod(link("ipvlan", IFF_NOARP, &PARENT));
        let endpoints = endpoints(&snapshot).unwrap();
        let peer = [0x02, b'b', b'h', 0, 1, 1];
        assert_eq!((endpoints[0].mac, endpoints[0].peer), (PARENT, Some(peer)));
        assert!(!endpoints[0].sources.arp);
        assert_eq!(endpoints[0].inwards(), Some(Rewrite { to: PARENT, from: peer }));
        assert_eq!(endpoints[0].outwards(), Some(Rewrite { to: PARENT, from: PARENT }));
        let network = network(&snapshot, &endpoints);
        assert_eq!(addresses(&network), ["10.1.2.3/32", "fd00::3/128"]);
        let expected = [
            "default via 169.254.1.1 scope 0 onlink",
            "10.1.2.0/24 via 169.254.1.1 scope 0 onlink",
            "fd00::/64 via fe80::1 scope 0 onlink",
            "default via fe80::1 scope 0 onlink",
        ];
        assert_eq!(lines(&network), expected);
        let neighbours = network.neighbours.iter().map(|n| (n.ip.to_string(), n.mac));
        let neighbours: Vec<_> = neighbours.collect();
        assert_eq!(neighbours, [("169.254.1.1".into(), peer), ("fe80::1".into(), peer)]);
    }

    #[test]
    fn netkit_l3_gets_an_address_that_stays_in_the_pod() {
        let endpoints = endpoints(&pod(link("netkit", IFF_NOARP, &[0; 6]))).unwrap();
        let mac = [0x02, b'b', b'h', 0, 0, 1];
        assert_eq!((endpoints[0].mac, endpoints[0].sources.mac), (mac, mac));
        assert_eq!(endpoints[0].inwards().unwrap().to, mac);
        assert_eq!(endpoints[0].outwards(), Some(Rewrite { to: [0; 6], from: [0; 6] }));
        assert_eq!(endpoints[0].sources.v6[0], "fe80::62:68ff:fe00:1".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn joins_what_has_addresses_and_is_up() {
        let mut snapshot = pod(link("veth", 0, &PARENT));
        let other = |index, flags| Link { index, flags, ..link("veth", 0, &PARENT) };
        snapshot.links.push(other(3, IFF_UP));
        snapshot.links.push(other(4, 0));
        snapshot.links.push(other(1, IFF_UP | IFF_LOOPBACK));
        for link in [4, 1] {
            snapshot.addresses.push(Address { link, ..address("10.9.9.9", 32, 0) });
        }
        let endpoints = endpoints(&snapshot).unwrap();
        assert_eq!(endpoints.iter().map(|endpoint| endpoint.link.index).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn temporary_addresses_are_left_out() {
        let mut snapshot = pod(link("veth", 0, &PARENT));
        snapshot.addresses.push(address("fd00::9", 64, IFA_F_TEMPORARY));
        snapshot.addresses.push(address("fd00::10", 64, IFA_F_DADFAILED));
        let network = network(&snapshot, &endpoints(&snapshot).unwrap());
        assert_eq!(addresses(&network), ["10.1.2.3/24", "fd00::3/64"]);
    }

    #[test]
    fn masks() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(masked(ip("10.1.2.3"), 24), ip("10.1.2.0"));
        assert_eq!(masked(ip("10.1.2.3"), 0), ip("0.0.0.0"));
        assert_eq!(masked(ip("10.1.2.3"), 32), ip("10.1.2.3"));
        assert_eq!(masked(ip("fd00::1:2"), 112), ip("fd00::1:0"));
        assert_eq!(masked(ip("fd00::1"), 0), ip("::"));
    }
}
