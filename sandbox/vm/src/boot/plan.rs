//! What a boot needs to know. Pure.

use std::path::PathBuf;

use sandbox_core::Id;
use vm_volumes::GuestPlan;

use crate::size::Size;

/// A VM to boot.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The sandbox's id.
    pub(crate) id: Id,
    /// The VM's directory; made here.
    pub(crate) dir: PathBuf,
    /// The Pod's network namespace; without one the guest has its loopback alone.
    pub(crate) netns: Option<PathBuf>,
    /// The Pod's cgroup, as `linux.cgroupsPath` names it.
    pub(crate) cgroup: Option<String>,
    /// Host name, sysctls and `/dev/shm`.
    pub(crate) guest: GuestPlan,
    pub(crate) size: Size,
    /// The size it can grow to.
    pub(crate) most: Size,
    /// UID the VMM runs as; `None` means root.
    pub(crate) user: Option<u32>,
}
