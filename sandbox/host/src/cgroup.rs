//! A Pod's control group on the host, cgroup v1 and v2.
//!
//! The paths are those of the OCI runtime specification's `linux.cgroupsPath`: a path below each
//! hierarchy's mount (cgroupfs driver), or `slice:prefix:name` (systemd driver).

mod error;
mod file;
mod group;
mod limits;
mod path;
mod read;
mod tree;

pub use error::CgroupError;
pub use group::{Cgroup, MOUNT, Version, host_version};
pub use limits::Limits;
pub use path::relative;

#[cfg(test)]
mod tests;
