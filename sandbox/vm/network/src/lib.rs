//! The Pod's network: each interface that the CNI plugins made is joined to a tap of the guest.
//!
//! The interface stays in the Pod's namespace with its addresses, where the plugins find it again
//! when they remove the network. Two BPF programs on it and one on the tap join the two:
//!
//! * frames that arrive on the interface go to the tap, so that the host's network stack in the
//!   namespace never receives one;
//! * frames of the guest leave by the interface if they are from the Pod's own addresses;
//! * frames of the host's stack never leave.
//!
//! On the wire the guest therefore *is* the Pod, and the policies that plugins enforce on the other
//! end of the interface hold for it. [`Network::forward_ports`] forwards connections to the
//! namespace's loopback, where `kubectl port-forward` connects to, to the guest.
//!
//! This has two limits that containers do not have: the daemon of the `dhcp` plugin, which works in
//! the namespace, cannot renew a lease; and on a macvlan or a physical function, whose hardware
//! filters multicast, the guest receives the groups that the host's interface has joined (those of
//! neighbour discovery among them), not those that it joins itself.
//!
//! This needs `sch_ingress` and `cls_bpf`, which the kernels of all common distributions have. There
//! is no fallback: it could not restrict the guest to its addresses as strictly, and a Pod must not
//! become less safe because a module is missing.

#![deny(unsafe_code)]

mod bpf;
mod error;
mod guest;
mod network;
mod snapshot;
mod sys;
mod tap;
mod tc;
#[cfg(test)]
mod tests;

pub use error::NetworkError;
pub use guest::{GuestNetwork, Interface, Neighbour, Prefix, Route};
pub use network::{Network, NetworkRecord, Prepared, prepare, undo};
