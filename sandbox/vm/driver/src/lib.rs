//! Drivers for virtual machine monitors (VMMs): cloud-hypervisor and QEMU behind the traits
//! [`Driver`] and [`Vmm`], and the choice between them for this host.
//!
//! A [`Driver`] starts a VMM from a [`VmPlan`], which is pure data, and returns a [`Vmm`], which
//! plugs devices in, boots the VM, grows it and stops it. The drivers differ in data
//! ([`Capabilities`]), not in methods. Both keep one contract, which runs as a test on each of
//! them and on the fake (feature `testing`).
//!
//! The VMM and its helper processes run without privileges, under a user of their own and
//! confined to the files that they need.

#![deny(unsafe_code)]

mod bounded_log;
mod check;
mod choose;
mod cloud_hypervisor;
mod connect;
#[cfg(test)]
mod contract;
mod error;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod files;
mod growth;
mod kvm;
mod place;
mod processes;
mod qemu;
mod qmp;
mod rest;
mod socket;
mod user;
mod vmm;

pub use bounded_log::BoundedLog;
pub use choose::{Choice, Hypervisor, choose};
pub use cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
#[cfg(any(test, feature = "testing"))]
pub use fake::{Call, FakeDriver};
pub use files::system_files;
pub use qemu::{Accel, Qemu, QemuSettings};
pub use socket::connect_nofollow;
pub use user::{chown, vm_user};
pub use vmm::{Capabilities, Device, Disk, Driver, Nic, Share, VmPlan, Vmm};
