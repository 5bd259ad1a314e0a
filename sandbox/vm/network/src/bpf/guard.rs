//! The program on the tap: frames of the guest leave the Pod only with the Pod's own addresses.
//!
//! For containers, the host's kernel ensures much of this; a guest's own kernel is not trusted. A
//! frame passes when its Ethernet source is the Pod's and it is one of
//!
//! * IPv4 from one of the Pod's addresses,
//! * ARP in which the sender is the Pod (or unspecified, as in an address probe),
//! * IPv6 from one of the Pod's addresses or from none; and if it is neighbour discovery, it
//!   is neither a router advertisement nor a redirect, and advertises the Pod's addresses
//!   only.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::redirect::{DROP, Rewrite, send};
use sandbox_netns::bpf::{Assembler, Helper, Label, Reg, Size, When};

/// `struct __sk_buff`: whether the frame had a VLAN tag.
const VLAN_PRESENT: i16 = 20;

const ETHERNET: i32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Hardware Ethernet, protocol IPv4, and the lengths of their addresses.
const ARP_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// IPv6 next headers: those that can stand before ICMPv6, and ICMPv6.
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const DESTINATION: u32 = 60;
const ICMPV6: u32 = 58;

/// Maximum number of extension headers.
const EXTENSIONS: usize = 4;

/// ICMPv6 types of neighbour discovery (RFC 4861).
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;

/// Stack offset of what was read last: below the part that `send` uses.
const READ: i16 = -64;

/// The addresses that the guest may send from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sources {
    /// Its Ethernet address.
    pub(crate) mac: [u8; 6],
    /// Whether it may send ARP on this link.
    pub(crate) arp: bool,
    /// Its IPv4 addresses.
    pub(crate) v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses, link-local ones included.
    pub(crate) v6: Vec<Ipv6Addr>,
}

/// Sends the guest's frames out by the interface `target`, with new Ethernet addresses if there
/// is a `rewrite`, and drops every frame that is not from one of `sources`.
pub(crate) fn guard(target: u32, sources: &Sources, rewrite: Option<Rewrite>) -> Vec<u64> {
    let mut program = Assembler::default();
    let ethertype = |kind: u16| u32::from(kind.to_be());
    program.copy(Reg::R6, Reg::R1).load(Size::U32, Reg::R0, Reg::R6, VLAN_PRESENT).jump_if(
        Reg::R0,
        When::NotEqual,
        0,
        "drop",
    );
    read(&mut program, 0, ETHERNET);
    program
        .jump_unless_bytes(Reg::R10, READ + 6, &sources.mac, "drop")
        .load(Size::U16, Reg::R0, Reg::R10, READ + 12)
        .jump_if(Reg::R0, When::Equal, ethertype(ETHERTYPE_IPV4), "ipv4")
        .jump_if(Reg::R0, When::Equal, ethertype(ETHERTYPE_IPV6), "ipv6");
    if sources.arp {
        program.jump_if(Reg::R0, When::NotEqual, ethertype(ETHERTYPE_ARP), "drop");
        arp(&mut program, sources);
    } else {
        program.jump("drop");
    }
    program.label("ipv4");
    read(&mut program, ETHERNET + 12, 4);
    pass_if_one_of(&mut program, READ, sources.v4.iter().map(Ipv4Addr::octets), "pass");
    program.jump("drop").label("ipv6");
    ipv6(&mut program, sources);
    program.label("drop").set(Reg::R0, DROP).exit().label("pass");
    send(&mut program, target, rewrite);
    program.finish()
}

/// Reads `length` bytes of the frame from `at` on; a shorter frame is dropped.
fn read(program: &mut Assembler, at: i32, length: i32) {
    program.set(Reg::R2, at);
    read_at_r2(program, length);
}

/// [`read`] at the offset in R2.
fn read_at_r2(program: &mut Assembler, length: i32) {
    program
        .copy(Reg::R1, Reg::R6)
        .copy(Reg::R3, Reg::R10)
        .add(Reg::R3, i32::from(READ))
        .set(Reg::R4, length)
        .call(Helper::LoadBytes)
        .jump_if(Reg::R0, When::NotEqual, 0, "drop");
}

/// Goes to `found` when what is on the stack at `at` is one of `addresses`.
fn pass_if_one_of<const N: usize>(
    program: &mut Assembler,
    at: i16,
    addresses: impl Iterator<Item = [u8; N]>,
    found: Label,
) {
    for address in addresses {
        program.jump_unless_bytes(Reg::R10, at, &address, "next").jump(found).label("next");
    }
}

fn arp(program: &mut Assembler, sources: &Sources) {
    read(program, ETHERNET, 28);
    program.jump_unless_bytes(Reg::R10, READ, &ARP_IPV4, "drop").jump_unless_bytes(
        Reg::R10,
        READ + 8,
        &sources.mac,
        "drop",
    );
    let senders = sources.v4.iter().chain([&Ipv4Addr::UNSPECIFIED]).map(Ipv4Addr::octets);
    pass_if_one_of(program, READ + 14, senders, "pass");
    program.jump("drop");
}

fn ipv6(program: &mut Assembler, sources: &Sources) {
    let octets = || sources.v6.iter().map(Ipv6Addr::octets);
    read(program, ETHERNET, 40);
    // R7: the next header, R8: where it is.
    program.load(Size::U8, Reg::R7, Reg::R10, READ + 6).set(Reg::R8, ETHERNET + 40);
    let senders = octets().chain([Ipv6Addr::UNSPECIFIED.octets()]);
    pass_if_one_of(program, READ + 8, senders, "ours");
    program.jump("drop").label("ours");
    for _ in 0..EXTENSIONS {
        program
            .jump_if(Reg::R7, When::Equal, HOP_BY_HOP, "extension")
            .jump_if(Reg::R7, When::Equal, ROUTING, "extension")
            .jump_if(Reg::R7, When::NotEqual, DESTINATION, "payload")
            .label("extension")
            .copy(Reg::R2, Reg::R8);
        read_at_r2(program, 2);
        program
            .load(Size::U8, Reg::R7, Reg::R10, READ)
            .load(Size::U8, Reg::R0, Reg::R10, READ + 1)
            .shift_left(Reg::R0, 3)
            .add(Reg::R8, 8)
            .add_reg(Reg::R8, Reg::R0);
    }
    program
        .jump_if(Reg::R7, When::Equal, HOP_BY_HOP, "drop")
        .jump_if(Reg::R7, When::Equal, ROUTING, "drop")
        .jump_if(Reg::R7, When::Equal, DESTINATION, "drop")
        .label("payload")
        // What is not ICMPv6 passes, fragments included: neighbour discovery in fragments is
        // ignored by receivers (RFC 6980).
        .jump_if(Reg::R7, When::NotEqual, ICMPV6, "pass")
        .copy(Reg::R2, Reg::R8);
    read_at_r2(program, 1);
    program
        .load(Size::U8, Reg::R0, Reg::R10, READ)
        .jump_if(Reg::R0, When::Equal, ROUTER_ADVERTISEMENT, "drop")
        .jump_if(Reg::R0, When::Equal, REDIRECT, "drop")
        .jump_if(Reg::R0, When::NotEqual, NEIGHBOUR_ADVERTISEMENT, "pass")
        .copy(Reg::R2, Reg::R8)
        .add(Reg::R2, 8);
    read_at_r2(program, 16);
    pass_if_one_of(program, READ, octets(), "pass");
    program.jump("drop");
}
