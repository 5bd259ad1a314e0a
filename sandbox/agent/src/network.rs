//! The guest's interfaces, addresses, routes and neighbours.

use std::net::IpAddr;

use agent_api::agent::{Interface, Neighbour, Route};
use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec};

use crate::blocking::blocking;
use crate::error::{Doing, Result, internal, invalid};
use crate::uevent;

/// Length in bytes of a MAC address.
const MAC: usize = 6;

/// Opens a netlink connection, whose task runs until the last handle is dropped.
fn open() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().doing(|| "opening netlink".into())?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Brings the loopback up.
pub(crate) async fn loopback_up() -> Result<()> {
    let up = LinkUnspec::new_with_name("lo").up().build();
    open()?.link().set(up).execute().await.doing(|| "bringing lo up".into())
}

/// Sets up interfaces, neighbours and routes, in the order in which they depend on each other.
pub(crate) async fn configure(
    interfaces: &[Interface],
    routes: &[Route],
    neighbours: &[Neighbour],
) -> Result<()> {
    if interfaces.is_empty() && routes.is_empty() && neighbours.is_empty() {
        return Ok(());
    }
    let handle = open()?;
    for interface in interfaces {
        add_interface(&handle, interface).await?;
    }
    // A route may need a static neighbour.
    for neighbour in neighbours {
        add_neighbour(&handle, neighbour).await?;
    }
    // Routes to the link first: gateways are reached by them.
    let (direct, via_gateway): (Vec<_>, Vec<_>) =
        routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(via_gateway) {
        add_route(&handle, route).await?;
    }
    Ok(())
}

async fn add_interface(handle: &Handle, wanted: &Interface) -> Result<()> {
    let name = &wanted.name;
    if wanted.mac.len() != MAC {
        let length = wanted.mac.len();
        return Err(invalid(format!(
            "interface {name:?}: its MAC address has {length} bytes, not {MAC}"
        )));
    }
    let mac = wanted.mac.clone();
    let what = format!("the interface {name:?}");
    let found = blocking(move || uevent::await_device(&what, || Ok(by_mac(&mac)))).await?;
    let index = index(handle, &found).await?;
    // An interface is renamed while it is down.
    let mut change = LinkUnspec::new_with_index(index).down();
    if found != *name {
        change = change.name(name.clone());
    }
    if wanted.mtu > 0 {
        change = change.mtu(wanted.mtu);
    }
    let doing = || format!("setting up {found} as {name:?} with MTU {}", wanted.mtu);
    handle.link().set(change.build()).execute().await.doing(doing)?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.doing(|| format!("bringing {name:?} up"))?;
    for address in &wanted.addresses {
        let (ip, prefix) = prefixed(address)?;
        let mut add = handle.address().add(index, ip, prefix);
        if ip.is_ipv6() {
            // The host's interface has done duplicate address detection for it.
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let added = add.replace().execute().await;
        added.doing(|| format!("adding {address} to {name:?}"))?;
    }
    Ok(())
}

/// The name of the interface with this MAC address.
fn by_mac(mac: &[u8]) -> Option<String> {
    let wanted: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = wanted.join(":");
    let entries = std::fs::read_dir("/sys/class/net").ok()?.flatten();
    let mut found = entries.filter(|entry| {
        let address = std::fs::read_to_string(entry.path().join("address"));
        address.is_ok_and(|address| address.trim() == wanted)
    });
    found.next()?.file_name().into_string().ok()
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let found = links.try_next().await.doing(|| format!("looking for interface {name:?}"))?;
    let link = found.ok_or_else(|| internal(format!("there is no interface {name:?}")))?;
    Ok(link.header.index)
}

async fn add_neighbour(handle: &Handle, wanted: &Neighbour) -> Result<()> {
    let ip = address("neighbour", &wanted.address)?;
    let index = index(handle, &wanted.interface).await?;
    let add = handle.neighbours().add(index, ip).link_local_address(&wanted.mac);
    let added = add.state(NeighbourState::Permanent).replace().execute().await;
    added.doing(|| format!("adding neighbour {ip} on {:?}", wanted.interface))
}

async fn add_route(handle: &Handle, wanted: &Route) -> Result<()> {
    let index = index(handle, &wanted.interface).await?;
    let route = route(wanted, index)?;
    handle.route().add(route).replace().execute().await.doing(|| {
        let destination =
            if wanted.destination.is_empty() { "default" } else { &wanted.destination };
        format!("adding route {destination} by {:?} on {:?}", wanted.gateway, wanted.interface)
    })
}

fn route(wanted: &Route, index: u32) -> Result<RouteMessage> {
    let byte = |what: &str, number: u32| {
        u8::try_from(number).map_err(|_| invalid(format!("route {what} {number} is above 255")))
    };
    let mut message = RouteMessage::default();
    let mut ipv6 = wanted.ipv6;
    let mut attribute = |ip: IpAddr, make: fn(RouteAddress) -> RouteAttribute| {
        ipv6 |= ip.is_ipv6();
        message.attributes.push(make(ip.into()));
    };
    let mut prefix_length = 0;
    if !wanted.destination.is_empty() {
        let (ip, prefix) = prefixed(&wanted.destination)?;
        prefix_length = prefix;
        attribute(ip, RouteAttribute::Destination);
    }
    if !wanted.gateway.is_empty() {
        attribute(address("route gateway", &wanted.gateway)?, RouteAttribute::Gateway);
    }
    if !wanted.source.is_empty() {
        attribute(address("route source", &wanted.source)?, RouteAttribute::PrefSource);
    }
    message.attributes.push(RouteAttribute::Oif(index));
    if wanted.priority > 0 {
        message.attributes.push(RouteAttribute::Priority(wanted.priority));
    }
    if wanted.mtu > 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(wanted.mtu)]));
    }
    let header = &mut message.header;
    header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.destination_prefix_length = prefix_length;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.scope = RouteScope::from(byte("scope", wanted.scope)?);
    header.protocol = match byte("protocol", wanted.protocol)? {
        0 => RouteProtocol::Static,
        given => RouteProtocol::from(given),
    };
    header.kind = RouteType::Unicast;
    if wanted.onlink {
        header.flags = RouteFlags::Onlink;
    }
    Ok(message)
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
        assert_eq!(message.header.address_family, AddressFamily::Inet);
        assert_eq!(message.header.destination_prefix_length, 8);
        assert_eq!(message.header.scope, RouteScope::Link);
        assert_eq!(message.header.protocol, RouteProtocol::Kernel);
        assert!(message.attributes.contains(&RouteAttribute::Oif(7)));
        let default = Route { ipv6: true, gateway: "fe80::1".into(), ..Route::default() };
        let message = route(&default, 7).unwrap();
        assert_eq!(message.header.address_family, AddressFamily::Inet6);
        assert_eq!(message.header.protocol, RouteProtocol::Static);
        assert_eq!(message.header.destination_prefix_length, 0);
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
}
