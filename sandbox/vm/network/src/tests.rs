//! Joining in real namespaces. The guest is a thread that has the tap.

mod bed;
mod forwarding;
mod packets;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use sandbox_host::{Classified, Kind};
use vm_driver::Nic;

use self::bed::Bed;
use self::packets::{Guest, Wire};
use crate::error::NetworkError;
use crate::guest::{GuestNetwork, Neighbour, Prefix, Route};
use crate::network::{NetworkRecord, Prepared, prepare, undo};

const POD: Ipv4Addr = Ipv4Addr::new(10, 88, 7, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 88, 7, 1);
const MAC: [u8; 6] = [0x02, 0, 0, 0x88, 0x07, 0x02];
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);

/// Prepares and connects a network.
async fn join(netns: &Path) -> Result<Prepared, NetworkError> {
    let prepared = prepare(netns).await?;
    prepared.network.connect().await?;
    Ok(prepared)
}

/// A Pod as the bridge plugin makes it.
async fn bridged(tag: &str) -> Bed {
    let bed = Bed::new(tag).await;
    bed.pod("link set eth0 address 02:00:00:88:07:02 mtu 1450").await;
    bed.pod("addr add 10.88.7.2/24 dev eth0").await;
    bed.out("addr add 10.88.7.1/24 dev out").await;
    bed.up().await;
    bed.pod("route add default via 10.88.7.1 dev eth0").await;
    bed
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `10.88.7.0/24`.
fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix { ip: ip(address), length: length.parse().unwrap() }
}

fn default_route(gateway: &str) -> Route {
    Route {
        destination: None,
        gateway: Some(ip(gateway)),
        interface: "eth0".into(),
        source: None,
        scope: 0,
        // `ip route` makes routes of the protocol `boot`.
        protocol: 3,
        priority: 0,
        onlink: false,
        ipv6: false,
        mtu: 0,
    }
}

fn route(destination: &str, gateway: &str) -> Route {
    Route { destination: Some(prefix(destination)), ..default_route(gateway) }
}

/// The addresses of the first interface.
fn addresses(network: &GuestNetwork) -> Vec<String> {
    network.interfaces[0].addresses.iter().map(Prefix::to_string).collect()
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn a_guest_is_the_pod_on_the_wire() {
    let bed = bridged("wire").await;
    let joined = join(&bed.pod_path()).await.unwrap();
    let interface = &joined.guest.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1450));
    assert_eq!(interface.mac, MAC);
    assert_eq!(interface.addresses, [prefix("10.88.7.2/24")]);
    assert_eq!(joined.guest.routes, [default_route("10.88.7.1")]);
    assert_eq!(joined.guest.neighbours, []);
    let [nic] = <[Nic; 1]>::try_from(joined.nics).unwrap();
    assert_eq!((nic.id.as_str(), nic.mac, nic.mtu), ("net0", MAC, 1450));
    assert_eq!(bed.tap_mtu().await, 1450);
    let silent = "/proc/sys/net/ipv6/conf/tap0/disable_ipv6";
    let silent = bed.inside_pod(move || std::fs::read_to_string(silent)).await;
    assert_eq!(silent.unwrap(), "1\n", "the host's stack keeps off the tap");

    let guest = Guest::run(nic.tap, MAC, POD);
    bed.outside(|| {
        let udp = UdpSocket::bind((OUTSIDE, 0)).unwrap();
        udp.set_read_timeout(Some(LONG)).unwrap();
        udp.send_to(b"hello", (POD, 7)).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = udp.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"hello"[..], SocketAddr::from((POD, 7))));
        packets::ping(OUTSIDE, POD, LONG).unwrap();
        // The guest answers a SYN with a reset.
        let refused = TcpStream::connect_timeout(&(POD, 80).into(), LONG).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    })
    .await;
    let seen = guest.stop();
    for kind in ["arp", "icmp", "tcp syn", "udp"] {
        assert!(seen.iter().any(|frame| packets::kind(frame) == kind), "no {kind} in {seen:x?}");
    }
    joined.network.leave().await.unwrap();
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn nothing_leaves_with_another_source_nor_from_the_hosts_stack() {
    let bed = bridged("spoof").await;
    let joined = join(&bed.pod_path()).await.unwrap();
    let tap = joined.nics.into_iter().next().unwrap().tap;
    bed.outside(|| packets::ping(OUTSIDE, POD, SHORT))
        .await
        .expect_err("only the guest may answer");
    let wire = bed.outside(Wire::listen).await;
    let to = bed.out_mac().await;
    let udp = |from: Ipv4Addr, mark: &str| packets::udp(MAC, to, from, OUTSIDE, mark.as_bytes());
    let mut other_mac = udp(POD, "bhnet-spoof-mac");
    other_mac[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let mut tagged = udp(POD, "bhnet-spoof-vlan");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let mut cut = udp(POD, "bhnet-spoof-cut");
    cut.truncate(28);
    let spoofed = [
        udp(Ipv4Addr::new(10, 88, 7, 99), "bhnet-spoof-ip"),
        other_mac,
        tagged,
        cut,
        packets::arp_reply(MAC, to, OUTSIDE, OUTSIDE),
    ];
    for frame in &spoofed {
        packets::send(&tap, frame);
    }
    packets::send(&tap, &packets::arp_reply(MAC, to, POD, OUTSIDE));
    packets::send(&tap, &udp(POD, "bhnet-honest"));
    // The namespace still has the address and routes, so its stack would send this.
    bed.inside_pod(|| {
        let socket = UdpSocket::bind((POD, 0)).unwrap();
        // The sender may or may not get an error for a dropped packet.
        drop(socket.send_to(b"bhnet-leak", (OUTSIDE, 9)));
    })
    .await;
    packets::send(&tap, &udp(POD, "bhnet-last"));
    let mut seen = wire.until("bhnet-last", LONG);
    seen.retain(|frame| frame[6..12] != to);
    let text = String::from_utf8_lossy(&seen.concat()).into_owned();
    assert!(text.contains("bhnet-honest"), "{seen:x?}");
    for bad in ["bhnet-spoof", "bhnet-leak"] {
        assert!(!text.contains(bad), "{bad} left: {seen:x?}");
    }
    let senders: Vec<_> =
        seen.iter().filter(|f| packets::kind(f) == "arp").map(|f| &f[28..32]).collect();
    assert_eq!(senders, [POD.octets()]);
    assert!(seen.iter().all(|frame| frame[6..12] == MAC), "{seen:x?}");
}

#[tokio::test]
#[ignore = "needs netns, iptables, program:ip, program:tc"]
async fn policies_on_the_hosts_end_hold() {
    let bed = bridged("policy").await;
    bed.out_exec("iptables -w -A INPUT -s 10.88.7.2 -p udp -j DROP").await;
    let joined = join(&bed.pod_path()).await.unwrap();
    let guest = Guest::run(joined.nics.into_iter().next().unwrap().tap, MAC, POD);
    bed.outside(|| {
        packets::ping(OUTSIDE, POD, LONG).unwrap();
        let udp = UdpSocket::bind((OUTSIDE, 0)).unwrap();
        udp.set_read_timeout(Some(SHORT)).unwrap();
        udp.send_to(b"hello", (POD, 7)).unwrap();
        let error = udp.recv_from(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    })
    .await;
    let seen = guest.stop();
    assert!(seen.iter().any(|frame| packets::kind(frame) == "udp"), "the question came in");
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn policy_routes_and_both_families_are_planned() {
    let bed = Bed::new("routes").await;
    bed.up().await;
    // Calico's way.
    bed.pod("addr add 10.1.2.3/32 dev eth0").await;
    bed.pod("route add 169.254.1.1 dev eth0 scope link").await;
    bed.pod("route add default via 169.254.1.1 dev eth0 mtu 1400").await;
    bed.pod("neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent").await;
    bed.pod("neigh add 10.9.9.9 lladdr ee:ee:ee:ee:ee:01 dev eth0 nud reachable").await;
    // The ptp plugin's way: the address's own prefix is reached by the gateway too.
    bed.pod("addr add 10.5.0.2/24 dev eth0").await;
    bed.pod("route del 10.5.0.0/24 dev eth0").await;
    bed.pod("route add 10.5.0.1 dev eth0 scope link src 10.5.0.2").await;
    bed.pod("route add 10.5.0.0/24 via 10.5.0.1 dev eth0 src 10.5.0.2 metric 7").await;
    // IPv6 beside it.
    bed.pod("addr add fd00:10::2/64 dev eth0 nodad").await;
    bed.pod("route add default via fd00:10::1 dev eth0").await;
    bed.pod("route add fd00:99::/64 via fe80::1 dev eth0 onlink metric 50").await;

    let joined = join(&bed.pod_path()).await.unwrap();
    assert_eq!(addresses(&joined.guest), ["10.1.2.3/32", "10.5.0.2/32", "fd00:10::2/64"]);
    let on_link = |destination: &str, source: Option<IpAddr>| Route {
        gateway: None,
        scope: 253,
        source,
        ..route(destination, "::")
    };
    let ipv6 = |priority, route| Route { ipv6: true, priority, ..route };
    let expected = [
        on_link("10.5.0.1/32", Some(ip("10.5.0.2"))),
        on_link("169.254.1.1/32", None),
        Route { mtu: 1400, ..default_route("169.254.1.1") },
        Route { source: Some(ip("10.5.0.2")), priority: 7, ..route("10.5.0.0/24", "10.5.0.1") },
        ipv6(50, Route { onlink: true, ..route("fd00:99::/64", "fe80::1") }),
        ipv6(1024, default_route("fd00:10::1")),
    ];
    assert_eq!(joined.guest.routes, expected);
    let neighbour =
        Neighbour { ip: ip("169.254.1.1"), mac: [0xee; 6], interface: "eth0".to_owned() };
    assert_eq!(joined.guest.neighbours, [neighbour]);
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn a_link_without_arp_needs_no_answers() {
    // As netkit and ipvlan are in their L3 modes: no ARP, and Ethernet addresses do
    // not matter. A veth pair behaves so when both ends have the same address.
    let bed = bridged("noarp").await;
    bed.pod("link set eth0 arp off").await;
    bed.out("link set out arp off address 02:00:00:88:07:02").await;
    let joined = join(&bed.pod_path()).await.unwrap();
    assert_eq!(addresses(&joined.guest), ["10.88.7.2/32"]);
    let by_peer = |route| Route { onlink: true, ..route };
    let subnet = route("10.88.7.0/24", "169.254.1.1");
    let subnet = Route { protocol: 2, source: Some(POD.into()), ..by_peer(subnet) };
    let mut routes = joined.guest.routes.clone();
    routes.retain(|route| !route.ipv6);
    assert_eq!(routes, [by_peer(default_route("169.254.1.1")), subnet]);
    assert_eq!(joined.guest.neighbours[0].ip, ip("169.254.1.1"));
    let peer = joined.guest.neighbours[0].mac;

    let guest = Guest::run(joined.nics.into_iter().next().unwrap().tap, MAC, POD);
    bed.outside(|| packets::ping(OUTSIDE, POD, LONG)).await.unwrap();
    let seen = guest.stop();
    let ping = seen.iter().find(|frame| packets::kind(frame) == "icmp").unwrap();
    assert_eq!(ping[..12], [&MAC[..], &peer].concat());
    assert!(seen.iter().all(|frame| packets::kind(frame) != "arp"), "{seen:x?}");
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn macvlan_works_like_a_cable() {
    let bed = Bed::new("macvlan").await;
    bed.out("link add mv0 link out type macvlan mode bridge").await;
    bed.out("link add mv1 link out type macvlan mode bridge").await;
    bed.out("addr add 10.88.7.1/24 dev mv0").await;
    bed.out("link set out up").await;
    bed.out("link set mv0 up").await;
    bed.macvlan_to_pod("mv1").await;
    bed.pod("link set eth0 address 02:00:00:88:07:02").await;
    bed.pod("addr add 10.88.7.2/24 dev eth0").await;
    bed.pod("link set eth0 up").await;
    let joined = join(&bed.pod_path()).await.unwrap();
    let guest = Guest::run(joined.nics.into_iter().next().unwrap().tap, MAC, POD);
    bed.outside(|| packets::ping(OUTSIDE, POD, LONG)).await.unwrap();
    assert!(guest.stop().iter().any(|frame| packets::kind(frame) == "icmp"));
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn leaving_puts_everything_back() {
    let bed = bridged("undo").await;
    let before = bed.state().await;
    let joined = join(&bed.pod_path()).await.unwrap();
    let during = bed.state().await;
    assert!(during.contains("clsact") && during.contains("tap0"), "{during}");
    assert!(during.contains("10.88.7.2/24"), "the plugins need the address: {during}");

    // Another process, which has the record alone, while the tap is still open.
    let record = serde_json::to_string(&joined.network.record()).unwrap();
    let record: NetworkRecord = serde_json::from_str(&record).unwrap();
    undo(&record).await.unwrap();
    assert_eq!(bed.state().await, before);
    undo(&record).await.unwrap();
    joined.network.leave().await.unwrap();
    drop(joined);
    bed.outside(|| packets::ping(OUTSIDE, POD, LONG)).await.expect("the host's stack is back");

    // And once more, undone by being dropped.
    let again = join(&bed.pod_path()).await.unwrap();
    assert_ne!(bed.state().await, before);
    drop(again.network);
    assert_eq!(bed.state().await, before);

    let path = bed.pod_path();
    bed.close().await;
    assert!(!path.exists());
    undo(&record).await.unwrap();
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn what_others_attached_stays() {
    let bed = bridged("others").await;
    bed.pod_exec("tc qdisc add dev eth0 clsact").await;
    let theirs = "u32 match u32 0 0 action mirred egress redirect dev lo";
    bed.pod_exec(&format!("tc filter add dev eth0 ingress prio 9 protocol all {theirs}")).await;
    let before = bed.state().await;
    let joined = join(&bed.pod_path()).await.unwrap();
    assert!(bed.state().await.contains("bulkhead"));
    joined.network.leave().await.unwrap();
    assert_eq!(bed.state().await, before);
    assert!(before.contains("mirred"), "{before}");
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn the_network_of_a_killed_shim_is_taken_over() {
    let bed = bridged("again").await;
    let lost = join(&bed.pod_path()).await.unwrap();
    drop(lost.nics);
    std::mem::forget(lost.network);
    let joined = join(&bed.pod_path()).await.unwrap();
    let guest = Guest::run(joined.nics.into_iter().next().unwrap().tap, MAC, POD);
    bed.outside(|| packets::ping(OUTSIDE, POD, LONG)).await.unwrap();
    guest.stop();
    joined.network.leave().await.unwrap();
    assert!(!bed.state().await.contains("bulkhead"));
    bed.outside(|| packets::ping(OUTSIDE, POD, LONG)).await.expect("the host's stack is back");
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn a_failure_half_way_leaves_nothing() {
    let bed = bridged("half").await;
    bed.pod("link add eth1 type veth peer name peer1").await;
    bed.pod("addr add 10.77.0.2/24 dev eth1").await;
    bed.pod("link set eth1 up").await;
    // An ingress qdisc of the old kind has no place for programs on the way out.
    bed.pod_exec("tc qdisc add dev eth1 ingress").await;
    let before = bed.state().await;
    let error = join(&bed.pod_path()).await.unwrap_err();
    let error = sandbox_host::Error::from(error).to_string();
    assert!(error.contains("interface eth1: it has a queueing discipline ingress"), "{error}");
    assert_eq!(bed.state().await, before);
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn nothing_passes_before_it_is_connected() {
    let bed = bridged("early").await;
    let before = bed.state().await;
    let prepared = prepare(&bed.pod_path()).await.unwrap();
    let tap = prepared.nics.into_iter().next().unwrap().tap;
    assert_eq!(bed.tap_mtu().await, 1450);
    let wire = bed.outside(Wire::listen).await;
    let to = bed.out_mac().await;
    let early = packets::udp(MAC, to, POD, OUTSIDE, b"bhnet-early");
    let refused = nix::unistd::write(&tap, &[&[0; 10], &early[..]].concat()).unwrap_err();
    assert_eq!(refused, nix::errno::Errno::EIO);
    prepared.network.connect().await.unwrap();
    packets::send(&tap, &packets::udp(MAC, to, POD, OUTSIDE, b"bhnet-last"));
    let seen = wire.until("bhnet-last", LONG).concat();
    assert!(!String::from_utf8_lossy(&seen).contains("bhnet-early"), "{seen:x?}");

    // Connecting after leaving does nothing.
    prepared.network.leave().await.unwrap();
    prepared.network.connect().await.unwrap();
    assert_eq!(bed.state().await, before);
}

#[tokio::test]
async fn refuses_the_hosts_network() {
    for host in ["", "/proc/self/ns/net"] {
        let error = join(Path::new(host)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("hostNetwork: true"), "{error}");
    }
    let error = join(Path::new("/nonexistent/ns")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn refuses_an_interface_that_is_not_ethernet() {
    let bed = bridged("tun").await;
    bed.pod("tuntap add mode tun name tun9").await;
    bed.pod("addr add 10.3.0.1/24 dev tun9").await;
    bed.pod("link set tun9 up").await;
    let error = join(&bed.pod_path()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.to_string().contains("tun9 (tun)"), "{error}");
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn a_pod_without_interfaces_is_no_error() {
    let bed = Bed::new("none").await;
    bed.pod("link del eth0").await;
    let joined = join(&bed.pod_path()).await.unwrap();
    assert_eq!((joined.guest, joined.nics.len()), (GuestNetwork::default(), 0));
}

#[tokio::test]
#[ignore = "needs netns, program:ip, program:tc"]
async fn a_cancelled_join_is_undone() {
    let bed = bridged("cancel").await;
    let before = bed.state().await;
    // Cancelled at different points, after the end included.
    for millis in [0, 1, 3, 10, 30, 100] {
        let path = bed.pod_path();
        let joining = tokio::spawn(async move { join(&path).await });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        joining.abort();
        drop(joining.await);
        // A blocking thread may not have entered the namespace yet when its task is aborted.
        tokio::time::sleep(SHORT).await;
        let deadline = Instant::now() + LONG;
        while bed.threads_in_netns() {
            assert!(Instant::now() < deadline, "a thread is still in the namespace");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(bed.state().await, before, "cancelled after {millis} ms");
    }
}
