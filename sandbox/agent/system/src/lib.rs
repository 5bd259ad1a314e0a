//! The guest as a system, before and below its containers: boot, console, clocks, hot-plugged devices,
//! network, and the file systems that containers are given.
//!
//! [`boot()`] turns the kernel's start of `/init` into a system that can run containers, and [`configure()`]
//! makes it the host's. Everything else serves a call of the host or one of its containers.

#![deny(unsafe_code)]

mod blocking;
mod boot;
mod clock;
mod configure;
mod console;
mod disk;
mod error;
mod hotplug;
mod mounts;
mod network;
mod paths;
mod rootfs;
mod storage;
mod sysctl;
mod uevent;

pub use blocking::blocking;
pub use boot::{CGROUPS, PROGRAM, boot};
pub use clock::{now, set_clock, since_boot};
pub use configure::configure;
pub use console::{log_debug, log_error, log_info, power_off, power_off_on_panic};
pub use disk::{DiskNode, find_disk};
pub use error::{Doing, internal, invalid, late};
pub use hotplug::{memory_block, online};
pub use paths::make_dir;
pub use rootfs::Rootfs;
pub use storage::{MountedStorages, Storages};
pub use sysctl::write_sysctl;
