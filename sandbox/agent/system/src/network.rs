//! The guest's interfaces, addresses, routes and neighbours.

use std::io;
use std::net::IpAddr;

use agent_api::agent::{Interface, Neighbour, Route};
use nix::net::if_::if_nametoindex;
use sandbox_netlink::{
    Attribute, NLM_F_CREATE, NLM_F_REPLACE, Netlink, attribute, bytes, nested, number, text, u32_at,
};

use crate::blocking::blocking;
use crate::error::{Doing, Result, invalid};
use crate::uevent;

/// `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`, `linux/neighbour.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const LINK_HEADER: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;

const RTM_NEWADDR: u16 = 20;
const IFA_F_NODAD: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTM_NEWROUTE: u16 = 24;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;

const RTM_NEWNEIGH: u16 = 28;
const NUD_PERMANENT: u16 = 0x80;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Length in bytes of a MAC address.
const MAC: usize = 6;

/// Creates what does not exist and replaces what does.
const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// Brings the loopback up.
pub(crate) fn loopback_up() -> Result<()> {
    let up = link_header(0, IFF_UP);
    let set = open()?.change(RTM_SETLINK, 0, &up, &[text(IFLA_IFNAME, "lo")]);
    set.doing(|| "bringing lo up".into())
}

/// Sets up interfaces, neighbours and routes, in the order in which they depend on each other.
pub(crate) async fn configure(
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
) -> Result<()> {
    if interfaces.is_empty() && routes.is_empty() && neighbours.is_empty() {
        return Ok(());
    }
    blocking(move || set_up(&interfaces, &routes, &neighbours)).await
}

/// Blocks; in the network namespace of the calling thread.
fn set_up(interfaces: &[Interface], routes: &[Route], neighbours: &[Neighbour]) -> Result<()> {
    let mut netlink = open()?;
    for interface in interfaces {
        add_interface(&mut netlink, interface)?;
    }
    // A route may need a static neighbour.
    for neighbour in neighbours {
        add_neighbour(&mut netlink, neighbour)?;
    }
    // Routes to the link first: gateways are reached by them.
    let (direct, via_gateway): (Vec<_>, Vec<_>) =
        routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(via_gateway) {
        add_route(&mut netlink, route)?;
    }
    Ok(())
}

fn open() -> Result<Netlink> {
    Netlink::open().doing(|| "opening netlink".into())
}

fn add_interface(netlink: &mut Netlink, wanted: &Interface) -> Result<()> {
    let name = &wanted.name;
    if wanted.mac.len() != MAC {
        let length = wanted.mac.len();
        return Err(invalid(format!(
            "interface {name:?}: its MAC address has {length} bytes, not {MAC}"
        )));
    }
    let what = format!("the interface {name:?}");
    let found = uevent::await_device(&what, || by_mac(netlink, &wanted.mac))?;
    let mut changes = Vec::new();
    if found.name != *name {
        changes.push(text(IFLA_IFNAME, name));
    }
    if wanted.mtu > 0 {
        changes.push(number(IFLA_MTU, wanted.mtu));
    }
    // An interface is renamed while it is down.
    let down = link_header(found.index, 0);
    netlink
        .change(RTM_SETLINK, 0, &down, &changes)
        .doing(|| format!("setting up {} as {name:?} with MTU {}", found.name, wanted.mtu))?;
    let up = link_header(found.index, IFF_UP);
    netlink.change(RTM_SETLINK, 0, &up, &[]).doing(|| format!("bringing {name:?} up"))?;
    for address in &wanted.addresses {
        let (ip, prefix) = prefixed(address)?;
        let added = add_address(netlink, found.index, ip, prefix);
        added.doing(|| format!("adding {address} to {name:?}"))?;
    }
    Ok(())
}

/// `struct ifinfomsg` that brings an interface up, or down without [`IFF_UP`].
fn link_header(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, IFF_UP].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// An interface as the kernel has it.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
}

/// The interface with this MAC address.
fn by_mac(netlink: &mut Netlink, mac: &[u8]) -> Result<Option<Link>> {
    let links = netlink
        .dump(RTM_GETLINK, RTM_NEWLINK, LINK_HEADER)
        .doing(|| "reading the interfaces".into())?;
    let found = links.iter().find(|body| attribute(body, LINK_HEADER, IFLA_ADDRESS) == Some(mac));
    Ok(found.and_then(|body| link(body)))
}

fn link(body: &[u8]) -> Option<Link> {
    let name = attribute(body, LINK_HEADER, IFLA_IFNAME)?.strip_suffix(&[0])?;
    Some(Link { index: u32_at(body, 4)?, name: String::from_utf8(name.to_vec()).ok()? })
}

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name)
        .map_err(io::Error::from)
        .doing(|| format!("looking for interface {name:?}"))
}

fn add_address(netlink: &mut Netlink, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
    // The host's interface has done duplicate address detection for it.
    let flags = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut header = vec![family(ip.is_ipv6()), prefix, flags, 0];
    header.extend(index.to_ne_bytes());
    let octets = octets(ip);
    let mut attributes = vec![bytes(IFA_ADDRESS, &octets), bytes(IFA_LOCAL, &octets)];
    if let IpAddr::V4(ip) = ip {
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        attributes.push(bytes(IFA_BROADCAST, &(ip.to_bits() | hosts).to_be_bytes()));
    }
    netlink.change(RTM_NEWADDR, REPLACE, &header, &attributes)
}

fn add_neighbour(netlink: &mut Netlink, wanted: &Neighbour) -> Result<()> {
    let ip = address("neighbour", &wanted.address)?;
    let index = index(&wanted.interface)?;
    let mut header = vec![family(ip.is_ipv6()), 0, 0, 0];
    header.extend(index.to_ne_bytes());
    header.extend(NUD_PERMANENT.to_ne_bytes());
    header.extend([0, 0]);
    let attributes = [bytes(NDA_DST, &octets(ip)), bytes(NDA_LLADDR, &wanted.mac)];
    let added = netlink.change(RTM_NEWNEIGH, REPLACE, &header, &attributes);
    added.doing(|| format!("adding neighbour {ip} on {:?}", wanted.interface))
}

fn add_route(netlink: &mut Netlink, wanted: &Route) -> Result<()> {
    let message = route(wanted, index(&wanted.interface)?)?;
    netlink.change(RTM_NEWROUTE, REPLACE, &message.header, &message.attributes).doing(|| {
        let destination =
            if wanted.destination.is_empty() { "default" } else { &wanted.destination };
        format!("adding route {destination} by {:?} on {:?}", wanted.gateway, wanted.interface)
    })
}

/// An `RTM_NEWROUTE` message.
#[derive(Debug)]
struct RouteMessage {
    /// `struct rtmsg`.
    header: Vec<u8>,
    attributes: Vec<Attribute>,
}

fn route(wanted: &Route, index: u32) -> Result<RouteMessage> {
    let byte = |what: &str, number: u32| {
        u8::try_from(number).map_err(|_| invalid(format!("route {what} {number} is above 255")))
    };
    let mut attributes = Vec::new();
    let mut ipv6 = wanted.ipv6;
    let mut add = |kind: u16, ip: IpAddr| {
        ipv6 |= ip.is_ipv6();
        attributes.push(bytes(kind, &octets(ip)));
    };
    let mut prefix_length = 0;
    if !wanted.destination.is_empty() {
        let (ip, prefix) = prefixed(&wanted.destination)?;
        prefix_length = prefix;
        add(RTA_DST, ip);
    }
    if !wanted.gateway.is_empty() {
        add(RTA_GATEWAY, address("route gateway", &wanted.gateway)?);
    }
    if !wanted.source.is_empty() {
        add(RTA_PREFSRC, address("route source", &wanted.source)?);
    }
    attributes.push(number(RTA_OIF, index));
    if wanted.priority > 0 {
        attributes.push(number(RTA_PRIORITY, wanted.priority));
    }
    if wanted.mtu > 0 {
        attributes.push(nested(RTA_METRICS, &[number(RTAX_MTU, wanted.mtu)]));
    }
    let scope = byte("scope", wanted.scope)?;
    let protocol = match byte("protocol", wanted.protocol)? {
        0 => RTPROT_STATIC,
        given => given,
    };
    let flags = if wanted.onlink { RTNH_F_ONLINK } else { 0 };
    let mut header = vec![family(ipv6), prefix_length, 0, 0];
    header.extend([RT_TABLE_MAIN, protocol, scope, RTN_UNICAST]);
    header.extend(flags.to_ne_bytes());
    Ok(RouteMessage { header, attributes })
}

fn family(ipv6: bool) -> u8 {
    if ipv6 { AF_INET6 } else { AF_INET }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(what: &str, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| invalid(format!("{what} {text:?} is not an IP address")))
}

fn prefixed(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(ip, prefix)| {
        let ip: IpAddr = ip.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some((ip, prefix))
    });
    parsed.ok_or_else(|| invalid(format!("{text:?} is not an IP address with a prefix length")))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::slice;
    use std::time::Duration;

    use nix::sched::{CloneFlags, setns};
    use sandbox_host::{Command, Host, RealHost, spawn_detached};

    use super::*;

    #[test]
    fn a_route_has_its_address_family() {
        let wanted = Route {
            destination: "10.0.0.0/8".into(),
            source: "10.0.0.2".into(),
            scope: 253,
            protocol: 2,
            mtu: 1400,
            ..Route::default()
        };
        let message = route(&wanted, 7).unwrap();
        assert_eq!(message.header[..4], [AF_INET, 8, 0, 0]);
        assert_eq!(message.header[4..8], [RT_TABLE_MAIN, 2, 253, RTN_UNICAST]);
        assert_eq!(message.header[8..], [0; 4], "not onlink");
        assert!(message.attributes.contains(&number(RTA_OIF, 7)));
        assert!(message.attributes.contains(&bytes(RTA_DST, &[10, 0, 0, 0])));
        assert!(message.attributes.contains(&bytes(RTA_PREFSRC, &[10, 0, 0, 2])));
        let default = Route { ipv6: true, gateway: "fe80::1".into(), ..Route::default() };
        let message = route(&default, 7).unwrap();
        assert_eq!(message.header[..4], [AF_INET6, 0, 0, 0]);
        assert_eq!(message.header[5], RTPROT_STATIC);
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(prefixed("fd00::2/64").unwrap().1, 64);
        for bad in ["10.0.0.1", "10.0.0.1/33", "x/8", "10.0.0.1/-1"] {
            assert!(prefixed(bad).is_err(), "{bad:?}");
        }
        let mut bad = Route { gateway: "nowhere".into(), ..Route::default() };
        let error = route(&bad, 1).unwrap_err().to_string();
        assert_eq!(error, "route gateway \"nowhere\" is not an IP address");
        bad = Route { scope: 256, ..Route::default() };
        assert_eq!(route(&bad, 1).unwrap_err().to_string(), "route scope 256 is above 255");
    }

    const ETH0: [u8; MAC] = [2, 0, 0, 0, 0, 1];

    /// A network namespace of a test, with an interface that the host has just plugged in.
    struct Guest(String);

    impl Guest {
        async fn new(tag: &str) -> Self {
            let guest = Self(format!("bhagent-{}-{tag}", std::process::id()));
            run(&["netns", "add", &guest.0]).await;
            guest.ip("link add plugged address 02:00:00:00:00:01 type veth peer name wire").await;
            guest.ip("link set wire up").await;
            guest
        }

        async fn ip(&self, args: &str) -> String {
            let all: Vec<_> = ["-n", &self.0].into_iter().chain(args.split(' ')).collect();
            run(&all).await
        }

        /// Runs `work` on a thread of its own in the namespace.
        fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
            let netns = File::open(Path::new("/run/netns").join(&self.0)).unwrap();
            let enter = move || {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            let command = Command::new("ip").args(["netns", "del", &self.0]).outlives_parent();
            spawn_detached(command).unwrap();
        }
    }

    async fn run(args: &[&str]) -> String {
        let command = Command::new("ip").args(args.iter().copied()).outlives_parent();
        let output = RealHost::new().unwrap().run(command, Duration::from_secs(20)).await.unwrap();
        assert_eq!(output.exit.status, 0, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn route_to(destination: &str, gateway: &str) -> Route {
        Route {
            interface: "eth0".into(),
            destination: destination.into(),
            gateway: gateway.into(),
            ..Route::default()
        }
    }

    #[tokio::test]
    #[ignore = "needs netns, program:ip"]
    async fn the_kernel_has_what_the_host_asks_for() {
        let guest = Guest::new("set-up").await;
        let interface = Interface {
            name: "eth0".into(),
            mac: ETH0.into(),
            mtu: 1400,
            addresses: vec!["10.88.0.2/16".into(), "fd00::2/64".into()],
            ..Interface::default()
        };
        let neighbour = Neighbour {
            interface: "eth0".into(),
            address: "169.254.1.1".into(),
            mac: vec![2, 0, 0, 0, 0, 9],
            ..Neighbour::default()
        };
        let mut default = route_to("", "169.254.1.1");
        (default.source, default.priority, default.mtu) = ("10.88.0.2".into(), 50, 1300);
        let mut onlink = route_to("10.99.0.0/16", "192.0.2.1");
        onlink.onlink = true;
        let mut link = route_to("169.254.1.1/32", "");
        (link.scope, link.protocol) = (253, 2);
        let routes = [default, onlink, route_to("fd01::/32", "fd00::1"), link];

        guest.inside(loopback_up).unwrap();
        let set_up = || set_up(slice::from_ref(&interface), &routes, slice::from_ref(&neighbour));
        guest.inside(set_up).unwrap();
        guest.inside(set_up).expect("what is there is replaced");

        let lo = guest.ip("-o addr show dev lo").await;
        assert!(lo.contains("127.0.0.1/8"), "{lo}");
        let eth0 = guest.ip("addr show dev eth0").await;
        for wanted in [
            "UP",
            "mtu 1400",
            "link/ether 02:00:00:00:00:01",
            "inet 10.88.0.2/16 brd 10.88.255.255 scope global eth0",
            "inet6 fd00::2/64 scope global nodad",
        ] {
            assert!(eth0.contains(wanted), "{wanted} is not in {eth0}");
        }
        let routes = guest.ip("route show").await;
        for wanted in [
            "default via 169.254.1.1 dev eth0 proto static src 10.88.0.2 metric 50 mtu 1300",
            "10.99.0.0/16 via 192.0.2.1 dev eth0 proto static onlink",
            "169.254.1.1 dev eth0 proto kernel scope link",
        ] {
            let found = routes.lines().any(|line| line.trim() == wanted);
            assert!(found, "{wanted} is not in {routes}");
        }
        let ipv6 = guest.ip("-6 route show").await;
        assert!(ipv6.contains("fd01::/32 via fd00::1 dev eth0 proto static"), "{ipv6}");
        let neighbours = guest.ip("neigh show nud permanent").await;
        let wanted = "169.254.1.1 dev eth0 lladdr 02:00:00:00:00:09 PERMANENT";
        assert!(neighbours.contains(wanted), "{neighbours}");
    }

    #[tokio::test]
    #[ignore = "needs netns, program:ip"]
    async fn a_refusal_of_the_kernel_names_what_was_asked_for() {
        let guest = Guest::new("refusal").await;
        let absent = Route { interface: "eth9".into(), ..route_to("10.9.0.0/16", "") };
        let error = guest.inside(|| set_up(&[], &[absent], &[])).unwrap_err().to_string();
        assert_eq!(error, "looking for interface \"eth9\": No such device (os error 19)");
        let down = Route { interface: "wire".into(), ..route_to("10.9.0.0/16", "10.8.0.1") };
        let error = guest.inside(|| set_up(&[], &[down], &[])).unwrap_err().to_string();
        let wanted = "adding route 10.9.0.0/16 by \"10.8.0.1\" on \"wire\": \
                      Network is unreachable (os error 101)";
        assert_eq!(error, wanted);
    }
}
