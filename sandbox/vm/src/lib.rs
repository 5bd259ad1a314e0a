//! The VM backend: each Pod in a lightweight virtual machine of its own.
//!
//! Its parts are crates: `vm-driver` starts and drives the VMM (cloud-hypervisor or QEMU),
//! `vm-network` joins the Pod's interfaces to the guest, `vm-share` has its shared directory
//! served, `vm-volumes` plans what a container gets of it.

mod backend;
mod boot;
mod config;
mod container;
#[cfg(test)]
mod contract;
mod dial;
mod environment;
mod error;
mod guest;
mod launch;
mod process;
mod purge;
mod record;
mod sandbox;
mod size;
mod streams;
mod vm;

pub use backend::VmBackend;
pub use config::VmConfig;
pub use vm_driver::Hypervisor;
