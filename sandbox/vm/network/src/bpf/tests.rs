//! The programs in the real kernel: its verifier accepts them, and it runs them on frames.

use std::net::{Ipv4Addr, Ipv6Addr};

use sandbox_netns::bpf::{ProgramKind, load_program, run_program};

use super::*;

/// Verdicts (`linux/pkt_cls.h`).
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

const MAC: [u8; 6] = [2, 0, 0, 0xff, 0xee, 0x80];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0xff, 0xee, 0x81];
const IP: Ipv4Addr = Ipv4Addr::new(10, 88, 7, 2);
const IP2: Ipv4Addr = Ipv4Addr::new(192, 168, 255, 254);
const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 88, 7, 3);
const LL: &str = "fe80::ff:feff:ee80";

fn sources() -> Sources {
    let v6 = vec![LL.parse().unwrap(), "fd00::ffff:2".parse().unwrap()];
    Sources { mac: MAC, arp: true, v4: vec![IP, IP2], v6 }
}

fn verdict(code: &[u64], frame: &[u8]) -> (u32, Vec<u8>) {
    let program = load_program(ProgramKind::TRAFFIC, "test", code).unwrap();
    run_program(&program, frame).unwrap()
}

fn frame(source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &kind.to_be_bytes(), payload].concat()
}

fn ipv4(source: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend([10, 88, 7, 1]);
    packet
}

fn arp(mac: [u8; 6], sender: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(mac);
    packet.extend(sender.octets());
    packet.extend([0; 6]);
    packet.extend([10, 88, 7, 1]);
    packet
}

/// An IPv6 packet with extension headers of these types and lengths (in units of 8 bytes after
/// the first), then `next` and `payload`.
fn ipv6(source: &str, extensions: &[(u8, u8)], next: u8, payload: &[u8]) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().unwrap();
    let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
    kinds.push(next);
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, kinds[0], 255];
    packet.extend(source.octets());
    packet.extend(Ipv6Addr::LOCALHOST.octets());
    for ((_, length), next) in extensions.iter().zip(&kinds[1..]) {
        packet.extend([*next, *length]);
        packet.extend(vec![0; 6 + 8 * usize::from(*length)]);
    }
    packet.extend(payload);
    packet
}

fn advertisement(target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets()].concat()
}

#[test]
#[ignore = "needs bpf"]
fn the_guard_passes_the_pods_own_addresses_only() {
    let code = guard(1, &sources(), None);
    let v6 = "fd00::ffff:2";
    let pass = [
        ("IPv4", frame(MAC, 0x0800, &ipv4(IP))),
        ("IPv4, second address", frame(MAC, 0x0800, &ipv4(IP2))),
        ("ARP", frame(MAC, 0x0806, &arp(MAC, IP))),
        ("ARP probe", frame(MAC, 0x0806, &arp(MAC, Ipv4Addr::UNSPECIFIED))),
        ("IPv6 UDP", frame(MAC, 0x86dd, &ipv6(v6, &[], 17, &[]))),
        ("IPv6 link-local", frame(MAC, 0x86dd, &ipv6(LL, &[], 6, &[]))),
        ("solicitation without a source", frame(MAC, 0x86dd, &ipv6("::", &[], 58, &[135]))),
        ("own advertisement", frame(MAC, 0x86dd, &ipv6(v6, &[], 58, &advertisement(LL)))),
        ("MLD behind hop-by-hop", frame(MAC, 0x86dd, &ipv6(LL, &[(0, 0)], 58, &[143]))),
        ("UDP behind options", frame(MAC, 0x86dd, &ipv6(v6, &[(0, 0), (60, 2)], 17, &[]))),
    ];
    for (what, frame) in pass {
        assert_eq!(verdict(&code, &frame), (REDIRECT, frame.clone()), "{what}");
    }
    let rogue = advertisement("fd00::ffff:1");
    let options = [(60, 0), (43, 1)];
    let many = [(0, 0), (60, 0), (60, 0), (60, 0), (60, 0)];
    let mut not_ipv4_arp = arp(MAC, IP);
    not_ipv4_arp[3] = 1;
    let dropped = [
        ("another MAC", frame(OTHER_MAC, 0x0800, &ipv4(IP))),
        ("another IPv4 source", frame(MAC, 0x0800, &ipv4(OTHER_IP))),
        ("no IPv4 source", frame(MAC, 0x0800, &ipv4(Ipv4Addr::UNSPECIFIED))),
        ("ARP for another", frame(MAC, 0x0806, &arp(MAC, OTHER_IP))),
        ("ARP by another", frame(MAC, 0x0806, &arp(OTHER_MAC, IP))),
        ("ARP of something else", frame(MAC, 0x0806, &not_ipv4_arp)),
        ("ARP cut short", frame(MAC, 0x0806, &arp(MAC, IP)[..20])),
        ("another IPv6 source", frame(MAC, 0x86dd, &ipv6("fd00::ffff:3", &[], 17, &[]))),
        ("another link-local", frame(MAC, 0x86dd, &ipv6("fe80::1", &[], 17, &[]))),
        ("router advertisement", frame(MAC, 0x86dd, &ipv6(LL, &[], 58, &[134]))),
        ("redirect", frame(MAC, 0x86dd, &ipv6(LL, &[], 58, &[137]))),
        ("advertisement for another", frame(MAC, 0x86dd, &ipv6(LL, &[], 58, &rogue))),
        ("the same behind options", frame(MAC, 0x86dd, &ipv6(LL, &options, 58, &rogue))),
        ("endless options", frame(MAC, 0x86dd, &ipv6(LL, &many, 58, &rogue))),
        ("ICMPv6 without a type", frame(MAC, 0x86dd, &ipv6(LL, &[], 58, &[]))),
        ("VLAN tag", frame(MAC, 0x8100, &[0, 1, 8, 0, 0x45, 0, 0, 20])),
        ("LLDP", frame(MAC, 0x88cc, &[0; 40])),
    ];
    for (what, frame) in dropped {
        assert_eq!(verdict(&code, &frame).0, SHOT, "{what}");
    }
}

#[test]
#[ignore = "needs bpf"]
fn a_family_without_addresses_is_dropped() {
    let v4_only = Sources { v6: vec![], ..sources() };
    let v6_frame = frame(MAC, 0x86dd, &ipv6("fd00::ffff:2", &[], 17, &[]));
    assert_eq!(verdict(&guard(1, &v4_only, None), &v6_frame).0, SHOT);
    let v6_only = Sources { v4: vec![], ..sources() };
    let v4_frame = frame(MAC, 0x0800, &ipv4(IP));
    assert_eq!(verdict(&guard(1, &v6_only, None), &v4_frame).0, SHOT);
    assert_eq!(verdict(&guard(1, &v6_only, None), &v6_frame).0, REDIRECT);
}

#[test]
#[ignore = "needs bpf"]
fn without_arp_frames_get_the_links_own_addresses() {
    let no_arp = Sources { arp: false, ..sources() };
    let code = guard(1, &no_arp, Some(Rewrite { to: [0; 6], from: [0; 6] }));
    let (answer, out) = verdict(&code, &frame(MAC, 0x0800, &ipv4(IP)));
    assert_eq!((answer, &out[..14]), (REDIRECT, &[&[0; 12][..], &[8, 0]].concat()[..]));
    assert_eq!(out[14..], ipv4(IP));
    assert_eq!(verdict(&code, &frame(MAC, 0x0806, &arp(MAC, IP))).0, SHOT, "no ARP");
    assert_eq!(verdict(&code, &frame(OTHER_MAC, 0x0800, &ipv4(IP))).0, SHOT);

    let inwards = redirect(1, Some(Rewrite { to: MAC, from: OTHER_MAC }));
    let (answer, out) = verdict(&inwards, &frame([0; 6], 0x0800, &ipv4(OTHER_IP)));
    assert_eq!(answer, REDIRECT);
    assert_eq!(out, [&MAC[..], &OTHER_MAC, &[8, 0], &ipv4(OTHER_IP)].concat());
}

#[test]
#[ignore = "needs bpf"]
fn the_way_in_takes_everything_and_the_way_out_nothing_of_the_hosts() {
    let any = frame(OTHER_MAC, 0x88cc, &[0; 20]);
    assert_eq!(verdict(&redirect(1, None), &any), (REDIRECT, any.clone()));
    // A frame made here came in by no interface.
    assert_eq!(verdict(&only_from(7), &any).0, SHOT);
}

#[test]
#[ignore = "needs bpf"]
fn many_addresses_still_make_a_program() {
    let v4 = (0..100).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect();
    let v6 = (0..100).map(|n| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)).collect();
    let code = guard(1, &Sources { mac: MAC, arp: true, v4, v6 }, None);
    let last = frame(MAC, 0x0800, &ipv4(Ipv4Addr::new(10, 0, 1, 99)));
    assert_eq!(verdict(&code, &last).0, REDIRECT);
    let beyond = frame(MAC, 0x0800, &ipv4(Ipv4Addr::new(10, 0, 1, 100)));
    assert_eq!(verdict(&code, &beyond).0, SHOT);
}
