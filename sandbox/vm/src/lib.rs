//! The VM backend: each Pod in a lightweight virtual machine of its own.
//!
//! [`driver`] starts and drives the machine (cloud-hypervisor or QEMU), [`network`] joins the
//! Pod's interfaces to it.

pub mod driver;
pub mod network;
pub mod share;
pub mod volumes;
