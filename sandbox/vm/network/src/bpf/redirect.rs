//! The programs on the Pod's interface: what arrives goes to the guest, what leaves is from the
//! guest.

use sandbox_netns::bpf::{Assembler, Helper, Reg, Size, When};

/// Verdicts of traffic control (`linux/pkt_cls.h`): drop, and continue as without the program.
pub(super) const DROP: i32 = 2;
const GO_ON: i32 = -1;

/// `struct __sk_buff`: the interface that a frame arrived on.
const INGRESS_IFINDEX: i16 = 36;

/// New Ethernet addresses for every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rewrite {
    /// The destination.
    pub(crate) to: [u8; 6],
    /// The source.
    pub(crate) from: [u8; 6],
}

/// Sends every frame out by the interface `target`, with new addresses if there is a `rewrite`.
pub(crate) fn redirect(target: u32, rewrite: Option<Rewrite>) -> Vec<u64> {
    let mut program = Assembler::default();
    program.copy(Reg::R6, Reg::R1);
    send(&mut program, target, rewrite);
    program.finish()
}

/// Passes frames that arrived on the interface `source`, and drops those that the host's network
/// stack sends.
pub(crate) fn only_from(source: u32) -> Vec<u64> {
    let mut program = Assembler::default();
    program
        .load(Size::U32, Reg::R2, Reg::R1, INGRESS_IFINDEX)
        .set(Reg::R0, GO_ON)
        .jump_if(Reg::R2, When::Equal, source, "pass")
        .set(Reg::R0, DROP)
        .label("pass")
        .exit();
    program.finish()
}

/// Ends a program, whose context is in R6, by sending the frame out by `target`.
pub(super) fn send(program: &mut Assembler, target: u32, rewrite: Option<Rewrite>) {
    if let Some(Rewrite { to, from }) = rewrite {
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&to);
        addresses[6..].copy_from_slice(&from);
        for (at, word) in addresses.chunks_exact(4).enumerate() {
            let value = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            program.store_value(Size::U32, Reg::R10, -12 + 4 * at as i16, value);
        }
        program
            .copy(Reg::R1, Reg::R6)
            .set(Reg::R2, 0)
            .copy(Reg::R3, Reg::R10)
            .add(Reg::R3, -12)
            .set(Reg::R4, 12)
            .set(Reg::R5, 0)
            .call(Helper::StoreBytes)
            .jump_if(Reg::R0, When::NotEqual, 0, "unwritable");
    }
    program
        .set(Reg::R1, target as i32)
        .set(Reg::R2, 0)
        .call(Helper::Redirect)
        .exit()
        .label("unwritable");
    if rewrite.is_some() {
        program.set(Reg::R0, DROP).exit();
    }
}
