//! The client of the node's container runtime: CRI v1 over its unix socket.

mod call;
mod calls;
mod client;
mod config;
mod error;

pub use client::Cri;
pub use error::CriError;
