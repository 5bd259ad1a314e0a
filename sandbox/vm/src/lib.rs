//! The VM backend: each Pod in a lightweight virtual machine of its own.
//!
//! [`driver`] starts and drives the VM (cloud-hypervisor or QEMU), [`network`] joins the
//! Pod's interfaces to it.

mod backend;
mod boot;
mod bounded_log;
mod config;
mod container;
#[cfg(test)]
mod contract;
mod dial;
pub mod driver;
mod environment;
mod error;
mod guest;
mod launch;
pub mod network;
mod process;
mod purge;
mod record;
mod sandbox;
pub mod share;
mod size;
mod socket;
mod streams;
mod vm;
pub mod volumes;

pub use backend::VmBackend;
pub use config::{Hypervisor, VmConfig};
