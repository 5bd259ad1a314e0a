//! Work in a Pod's network namespace on the host, for backends whose containers have their own
//! network stack behind it.

#![deny(unsafe_code)]

pub mod bpf;
mod error;
mod forward;
mod held;
mod namespace;
mod steer;

pub use error::NetnsError;
pub use forward::{Dial, PortForward, Stream};
pub use held::Held;
pub use namespace::{Namespace, inside, inside_blocking};
