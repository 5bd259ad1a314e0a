//! What a container's plan is made from, and the plan itself: plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sandbox_core::{Id, RootfsMount};
use serde_json::Value;
use vm_driver::{Capabilities, Disk};
use vm_share::{SharedMount, Volume};

use crate::facts::Tmpfs;

/// The guest's directory of everything that is mounted for containers.
pub const GUEST_ROOT: &str = "/run/bulkhead";
/// Where the guest mounts the share.
pub const SHARE_MOUNT: &str = "/run/bulkhead/share";
/// Name of the root file system in a container's directory below the share.
pub(crate) const ROOTFS: &str = "rootfs";

/// What a container's plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The container.
    pub id: &'a Id,
    /// The bundle's directory.
    pub bundle: &'a Path,
    /// Its config.json, unchanged.
    pub spec: &'a Value,
    /// The snapshotter's mounts for its root file system.
    pub rootfs: &'a [RootfsMount],
    /// The state of the Pod.
    pub pod: &'a PodState,
    /// What the VM supports.
    pub capabilities: &'a Capabilities,
}

/// The state of a Pod that results from its earlier containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodState {
    /// Whether there is a container already: the first one configures the guest.
    pub opened: bool,
    /// The directory behind the Pod's `/dev/shm`, as the first container's plan has it.
    pub shm: Option<PathBuf>,
    /// The process ids that were reported to containerd for the Pod's containers.
    pub pids: Vec<u32>,
    /// Ids of the disks that are plugged in.
    pub disks: BTreeSet<String>,
}

/// What a container needs on the host, and what the guest gets.
#[derive(Debug, PartialEq)]
pub struct ContainerPlan {
    /// The root file system to mount below the share before the container is created, if it is
    /// not on disks.
    pub shared: Vec<SharedMount>,
    /// Files and directories of the host to mount below the share before the container is created;
    /// where the Pod has one under another name, `spec` has to be changed by [`crate::rename`].
    pub volumes: Vec<Volume>,
    /// To plug in. One id is one disk: plugged in for the first container that has it, taken out
    /// with the last.
    pub disks: Vec<Disk>,
    /// The root file system.
    pub rootfs: Rootfs,
    /// File systems of the guest that mounts refer to.
    pub storages: Vec<Storage>,
    /// Block devices in the container.
    pub devices: Vec<BlockDevice>,
    /// The config.json for the guest.
    pub spec: Value,
    /// Whether it joins the Pod's process id namespace.
    pub shared_pid: bool,
    /// For the guest as a whole; only a Pod's first container has one.
    pub guest: Option<GuestPlan>,
    /// What was left out, for the log.
    pub left_out: Vec<String>,
}

impl ContainerPlan {
    /// A plan that leaves everything as it is, with the root file system below the share.
    pub(crate) fn new(request: &Request<'_>) -> Self {
        Self {
            shared: Vec::new(),
            volumes: Vec::new(),
            disks: Vec::new(),
            rootfs: Rootfs::Path(format!("{SHARE_MOUNT}/{}/{ROOTFS}", request.id)),
            storages: Vec::new(),
            devices: Vec::new(),
            spec: request.spec.clone(),
            shared_pid: false,
            guest: None,
            left_out: Vec::new(),
        }
    }
}

/// A container's root file system in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory of the guest.
    Path(String),
    /// An overlay of disks.
    Layers {
        /// The read-only layers, the highest first.
        lower: Vec<GuestDisk>,
        /// The writable layer; without one it is in the guest's memory.
        upper: Option<GuestDisk>,
    },
}

/// A file system that the guest mounts once for all containers that name its mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// An absolute path below [`GUEST_ROOT`].
    pub mount_point: String,
    /// What is mounted there.
    pub source: StorageSource,
}

/// What a [`Storage`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageSource {
    /// A tmpfs of the guest's own.
    Tmpfs(Tmpfs),
    /// A disk that the host plugs in.
    Disk(GuestDisk),
}

/// A file system on a disk, as the guest mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// The disk's serial number: [`Disk::id`].
    pub serial: String,
    /// The type of the file system.
    pub fs_type: String,
    /// Options for the mount.
    pub options: Vec<String>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// A node of a block device in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The disk's serial number: [`Disk::id`].
    pub serial: String,
    /// Its path in the container.
    pub path: String,
    /// The node's mode, such as 0660.
    pub mode: u32,
    /// The node's owner.
    pub uid: u32,
    /// The node's group.
    pub gid: u32,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// How the Pod's first container configures the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestPlan {
    /// The host name.
    pub hostname: Option<String>,
    /// Sysctls, each name with dots.
    pub sysctls: BTreeMap<String, String>,
    /// The directory behind `/dev/shm`, and its size in bytes.
    pub shm: Option<(PathBuf, u64)>,
}
