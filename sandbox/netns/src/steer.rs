//! The program that assigns all connections to the Pod's loopback to one listener, whatever the port.

use crate::bpf::{Assembler, Helper, Reg, Size, When};

/// Key in the map of the listener for 127.0.0.0/8.
pub(crate) const SLOT_V4: u32 = 0;
/// Key in the map of the listener for ::1.
pub(crate) const SLOT_V6: u32 = 1;

/// `struct bpf_sk_lookup` (`linux/bpf.h`).
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

/// The verdict with which the kernel continues, with the assigned socket if there is one.
const PASS: i32 = 1;

/// Assigns new TCP connections to a loopback address to the listeners in `map`, an array of
/// sockets. If a slot is empty the kernel looks for a listener as usual.
pub(crate) fn steer(map: i32) -> Vec<u64> {
    let mut program = Assembler::default();
    program
        .copy(Reg::R6, Reg::R1)
        .load(Size::U32, Reg::R0, Reg::R6, PROTOCOL)
        .jump_if(Reg::R0, When::NotEqual, libc::IPPROTO_TCP as u32, "pass")
        .load(Size::U32, Reg::R0, Reg::R6, FAMILY)
        .jump_if(Reg::R0, When::Equal, libc::AF_INET as u32, "v4")
        .jump_if(Reg::R0, When::NotEqual, libc::AF_INET6 as u32, "pass")
        .jump_unless_bytes(Reg::R6, LOCAL_IP6, &std::net::Ipv6Addr::LOCALHOST.octets(), "pass")
        .store_value(Size::U32, Reg::R10, -4, SLOT_V6 as i32)
        .jump("assign")
        .label("v4")
        .load(Size::U32, Reg::R0, Reg::R6, LOCAL_IP4)
        .and(Reg::R0, u32::from_ne_bytes([0xff, 0, 0, 0]))
        .jump_if(Reg::R0, When::NotEqual, u32::from_ne_bytes([127, 0, 0, 0]), "pass")
        .store_value(Size::U32, Reg::R10, -4, SLOT_V4 as i32)
        .label("assign")
        .map(Reg::R1, map)
        .copy(Reg::R2, Reg::R10)
        .add(Reg::R2, -4)
        .call(Helper::MapLookup)
        .jump_if_null(Reg::R0, "pass")
        .copy(Reg::R7, Reg::R0)
        .copy(Reg::R1, Reg::R6)
        .copy(Reg::R2, Reg::R0)
        .set(Reg::R3, 0)
        .call(Helper::SkAssign)
        .copy(Reg::R1, Reg::R7)
        .call(Helper::SkRelease)
        .label("pass")
        .set(Reg::R0, PASS)
        .exit();
    program.finish()
}
