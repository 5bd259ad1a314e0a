//! A small netlink client for one thread in a network namespace.
//!
//! Messages are the bytes of their bodies: a header of the message's own and attributes, which are
//! looked up by number. Unknown ones are skipped, so that additions of newer kernels do no harm.

#![forbid(unsafe_code)]

mod attribute;
mod socket;

pub use attribute::{Attribute, attribute, body, bytes, nested, number, text, u16_at, u32_at};
pub use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
pub use socket::Netlink;
