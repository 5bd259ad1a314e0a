//! From the plans of this backend to the messages of the agent's protocol.

use std::net::IpAddr;

use agent_api::agent;

use crate::network::{GuestNetwork, Prefix};

/// The guest's interfaces.
pub(crate) fn interfaces(network: &GuestNetwork) -> Vec<agent::Interface> {
    let interfaces = network.interfaces.iter().map(|interface| agent::Interface {
        name: interface.name.clone(),
        mac: interface.mac.to_vec(),
        mtu: interface.mtu,
        addresses: interface.addresses.iter().map(Prefix::to_string).collect(),
        ..agent::Interface::default()
    });
    interfaces.collect()
}

/// The guest's routes.
pub(crate) fn routes(network: &GuestNetwork) -> Vec<agent::Route> {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let routes = network.routes.iter().map(|route| agent::Route {
        destination: route.destination.map(|to| to.to_string()).unwrap_or_default(),
        gateway: text(route.gateway),
        interface: route.interface.clone(),
        source: text(route.source),
        scope: route.scope.into(),
        protocol: route.protocol.into(),
        priority: route.priority,
        onlink: route.onlink,
        ipv6: route.ipv6,
        mtu: route.mtu,
        ..agent::Route::default()
    });
    routes.collect()
}

/// The guest's permanent neighbour entries.
pub(crate) fn neighbours(network: &GuestNetwork) -> Vec<agent::Neighbour> {
    let neighbours = network.neighbours.iter().map(|neighbour| agent::Neighbour {
        address: neighbour.ip.to_string(),
        mac: neighbour.mac.to_vec(),
        interface: neighbour.interface.clone(),
        ..agent::Neighbour::default()
    });
    neighbours.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Interface, Neighbour, Route};

    #[test]
    fn a_network_is_written_as_text() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let network = GuestNetwork {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1450,
                addresses: vec![Prefix { ip: ip("10.1.2.3"), length: 24 }],
            }],
            routes: vec![Route {
                destination: None,
                gateway: Some(ip("fe80::1")),
                interface: "eth0".into(),
                source: None,
                scope: 253,
                protocol: 3,
                priority: 7,
                onlink: true,
                ipv6: true,
                mtu: 1400,
            }],
            neighbours: vec![Neighbour {
                ip: ip("169.254.1.1"),
                mac: [0xee; 6],
                interface: "eth0".into(),
            }],
        };
        let interface = &interfaces(&network)[0];
        assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1450));
        assert_eq!(
            (&interface.mac[..], interface.addresses[0].as_str()),
            (&[2, 0, 0, 0, 0, 1][..], "10.1.2.3/24")
        );
        let route = &routes(&network)[0];
        assert_eq!((route.destination.as_str(), route.gateway.as_str()), ("", "fe80::1"));
        assert_eq!((route.source.as_str(), route.interface.as_str()), ("", "eth0"));
        assert_eq!((route.scope, route.protocol, route.priority, route.mtu), (253, 3, 7, 1400));
        assert!(route.onlink && route.ipv6);
        let neighbour = &neighbours(&network)[0];
        assert_eq!(neighbour.address, "169.254.1.1");
        assert_eq!((&neighbour.mac[..], neighbour.interface.as_str()), (&[0xee; 6][..], "eth0"));
    }
}
