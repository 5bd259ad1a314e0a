//! The Pod's network: each interface that the CNI plugins made is joined to a tap of the guest.
//!
//! The interface stays in the Pod's namespace with its addresses, where the plugins find it
//! again when they take the network down. Two programs on it and one on the tap join the two:
//!
//! * what comes in by the interface goes to the tap, so the host's own network stack in the
//!   namespace never sees a frame, and answers none;
//! * what the guest sends leaves by the interface if it is from the Pod's own addresses;
//! * what that stack sends itself never leaves.
//!
//! The guest therefore *is* the Pod on the wire, and the policies that plugins enforce on the
//! other end of the interface hold for it. Connections to the namespace's loopback, which is
//! where `kubectl port-forward` ends, are taken to the guest by [`Network::forward_ports`].
//!
//! Two things follow that a container would not notice: the `dhcp` plugin's daemon, which works
//! in the namespace, cannot renew a lease any more; and on a macvlan or a physical function,
//! whose hardware filters multicast, the guest hears the groups that the host's interface has
//! joined (those of neighbour discovery among them), not those it joins itself.
//!
//! This needs `sch_ingress` and `cls_bpf`, which every common distribution's kernel has. There
//! is no second way without them: it could not hold the guest to its addresses as tightly, and
//! a Pod must not become less safe because a module is missing.

#![deny(unsafe_code)]

mod bpf;
mod error;
mod guest;
mod netlink;
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
