//! From a container's config.json, full of the host's paths, to what the guest is told.
//!
//! [`Facts::gather`] looks at what the configuration names, [`plan`] decides; planning is pure.
//! The rules, each with its reason:
//!
//! **Root file system**
//!
//! * Mounts that are images or block devices (`erofs`, `ext4`, `xfs`, `btrfs`, and an `overlay` or
//!   `bind` on top whose options refer to them as `{{ mount 0 }}` and `{{ overlay 1 3 }}`: the
//!   mount manager of containerd 2.2 and later) become disks: the guest reads them without a
//!   file server. An overlay without a writable image gets its writable layer from the guest's
//!   memory, whatever directory the snapshotter meant for it: a guest's overlay cannot write
//!   through virtio-fs.
//! * Everything else is mounted on the host below the share, as the snapshotter asked.
//! * dm-verity and images that span several devices are refused rather than read unverified or
//!   in part. So are id-mapped ones.
//!
//! **Mounts**
//!
//! * A bind is mounted below the share, with its submounts if it has `rbind`, and read-only on
//!   the host if it is read-only (`rro`: with its submounts), for a guest keeps no promises. The
//!   guest's mount is read-only as well, unless the host has submounts there that are to stay
//!   writable: to a guest they are one file system.
//!   All containers of a Pod that have the same one share one mount of it, for a guest's caches
//!   are per mount; an emptyDir is the Pod's own and is writable there, so that those who may
//!   only read it see what the others write.
//!   `rslave` is kept between host and share, where it means something; in the guest each mount
//!   is private. `rshared` is refused: nothing a guest mounts can appear on the host.
//! * The Pod's `/dev/shm` is the guest's own, of the host's size: shared memory does not work
//!   through virtio-fs. It is known as the one that the Pod's first container has there.
//! * A memory emptyDir (`kubernetes.io~empty-dir`, the root of a tmpfs) is a tmpfs in the guest
//!   with the host's size, mode and owner, one for all containers of the Pod. Other tmpfs
//!   volumes (secrets, tokens, configuration) hold what the host writes, and stay shared.
//!   A subPath of a memory emptyDir is refused: it would be another directory than the rest of
//!   the Pod sees. Huge pages are refused for the same reason.
//! * Sockets and fifos of the host are refused: virtio-fs shows them, but nobody of the guest
//!   reaches who listens. `/dev` as a whole is refused, its devices are not there.
//! * A character device that every guest has is the guest's; a block device becomes a disk.
//! * `proc`, `sysfs`, `cgroup`, `mqueue`, `tmpfs`, `devpts` pass; options that speak of the host's
//!   SELinux or cgroup mount are taken off. Other types are refused.
//!
//! **Devices**
//!
//! * null, zero, full, random, urandom, tty, fuse and net/tun pass, block devices become disks,
//!   others are refused. Where a privileged Pod was given all devices of the host
//!   (`privileged_without_host_devices = false`), those a guest does not have are left out, and
//!   so are the host's disks.
//!
//! **The rest of the configuration**
//!
//! * Namespaces: network, IPC and UTS are the guest's own, so those entries go, with the host's
//!   paths; the host name and the sysctls of the first container are the guest's as well. A
//!   process id namespace by path is the Pod's. Without one, or without an IPC namespace, the
//!   Pod wants the host's: refused. So are user namespaces: the share knows no id mapping.
//! * cgroup path, AppArmor, SELinux, Intel RDT, host hooks, cpusets, block I/O and RDMA limits
//!   speak of the host's kernel and go. `linux.resources.devices` stays.
//! * Annotations: only CRI's names of container and Pod stay.
//! * `root.path` is the agent's to set, `root.readonly` stays.

mod devices;
mod facts;
mod mounts;
mod rootfs;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use agent_api::{SHARE_MOUNT, agent};
use sandbox_core::request::RootfsMount;
use sandbox_core::{Classified, Id, Kind};
use serde_json::Value;

use crate::driver::{Capabilities, Disk};
use crate::share::{SharedMount, VOLUMES, Volume};
pub use facts::{Facts, Source, Tmpfs};

/// More mounts than this no container has in earnest.
const MOUNTS_MAX: usize = 1024;

/// What a container's plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The container.
    pub id: &'a Id,
    /// The bundle's directory.
    pub bundle: &'a Path,
    /// Its config.json, as given.
    pub spec: &'a Value,
    /// What the snapshotter wants mounted as its root file system.
    pub rootfs: &'a [RootfsMount],
    /// What the Pod is by now.
    pub pod: &'a PodState,
    /// What the machine can do.
    pub capabilities: &'a Capabilities,
}

/// What earlier containers of the Pod have settled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodState {
    /// Whether there is a container already: what the first one asks for is the guest's.
    pub opened: bool,
    /// The directory behind the Pod's `/dev/shm`, as the first container's plan has it.
    pub shm: Option<PathBuf>,
    /// The process ids that containerd was told for the Pod's containers.
    pub pids: Vec<u32>,
    /// Ids of the disks that are plugged in.
    pub disks: BTreeSet<String>,
}

/// What a container needs on the host, and what the guest is told.
#[derive(Debug, Default, PartialEq)]
pub struct ContainerPlan {
    /// The root file system to mount below the share before the container is made, if it is not
    /// on disks.
    pub shared: Vec<SharedMount>,
    /// Files and directories of the host to have below the share before the container is made;
    /// where the Pod has one under another name, `spec` is to say so.
    pub volumes: Vec<Volume>,
    /// To plug in. One id is one disk: plugged in for the first container that has it, taken out
    /// with the last.
    pub disks: Vec<Disk>,
    /// The root file system.
    pub rootfs: agent::Rootfs,
    /// File systems of the guest that mounts refer to.
    pub storages: Vec<agent::Storage>,
    /// Block devices in the container.
    pub devices: Vec<agent::BlockDevice>,
    /// The config.json for the guest.
    pub spec: Value,
    /// Whether it joins the Pod's process id namespace.
    pub shared_pid: bool,
    /// For the guest as a whole; only a Pod's first container has one.
    pub guest: Option<GuestPlan>,
    /// What was left out, for the log.
    pub left_out: Vec<String>,
}

/// What the Pod's first container asks of the guest as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestPlan {
    /// The host name.
    pub hostname: Option<String>,
    /// Sysctls, each name with dots.
    pub sysctls: BTreeMap<String, String>,
    /// The directory behind `/dev/shm`, and its size in bytes.
    pub shm: Option<(PathBuf, u64)>,
}

/// Why a container cannot run in a guest.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration is wrong.
    #[error("{place}: {fault}")]
    Invalid {
        /// The field of config.json, or the mount.
        place: String,
        /// What is wrong, and the mend.
        fault: String,
    },
    /// No virtual machine can do that.
    #[error("{place}: {reason}")]
    Unsupported {
        /// The field of config.json, or the mount.
        place: String,
        /// Why, and the mend.
        reason: String,
    },
    /// The machine has no room for more disks.
    #[error("the Pod needs {needed} disks, {driver} takes {room}; {mend}")]
    Disks {
        /// How many there would be.
        needed: usize,
        /// How many there can be.
        room: usize,
        /// The driver.
        driver: &'static str,
        /// The mend.
        mend: &'static str,
    },
    /// A path cannot be looked at.
    #[error("looking at {path}")]
    Look {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Looking at the sources takes too long.
    #[error("looking at the volumes took more than {0} s; is a volume's server gone?")]
    Stalled(u64),
}

impl Classified for PlanError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::Disks { .. } => Kind::FailedPrecondition,
            Self::Look { .. } => Kind::Internal,
            Self::Stalled(_) => Kind::DeadlineExceeded,
        }
    }
}

/// Plans a container by the rules above.
///
/// # Errors
///
/// [`PlanError`] names the place in the configuration, the reason and the mend.
pub fn plan(request: &Request<'_>, facts: &Facts) -> Result<ContainerPlan, PlanError> {
    let mut plan = ContainerPlan { spec: request.spec.clone(), ..ContainerPlan::default() };
    spec::edit(&mut plan, request)?;
    rootfs::plan(&mut plan, request, facts)?;
    mounts::plan(&mut plan, request, facts)?;
    devices::plan(&mut plan, facts)?;
    bounded(&mut plan, request)?;
    Ok(plan)
}

/// Each disk once, and no more than the machine takes.
fn bounded(plan: &mut ContainerPlan, request: &Request<'_>) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    plan.disks.retain(|disk| seen.insert(disk.id.clone()));
    let needed = request.pod.disks.union(&seen).count();
    let (driver, room) = (request.capabilities.name, request.capabilities.disks);
    let mend = "fewer containers or block volumes, or an image of fewer layers, fit; \
                overlayfs as the snapshotter needs no disks";
    if needed > room { Err(PlanError::Disks { needed, room, driver, mend }) } else { Ok(()) }
}

/// A disk's id: the same for the same use of the same path, so that containers can share it.
fn disk_id(path: &Path, read_only: bool) -> String {
    format!("d{:016x}", hash(&(path, read_only)))
}

/// Where the guest has the volume `name`.
pub(crate) fn shared_at(name: &str) -> String {
    format!("{SHARE_MOUNT}/{VOLUMES}/{name}")
}

/// Names volumes in a planned configuration by the names that the Pod has them under.
pub(crate) fn rename(spec: &mut Value, renamed: &[(String, String)]) {
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        let is_it = |(asked, _): &&(String, String)| mount["source"] == shared_at(asked);
        if let Some((_, name)) = renamed.iter().find(is_it) {
            mount["source"] = shared_at(name).into();
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn invalid(place: impl Into<String>, fault: impl Into<String>) -> PlanError {
    PlanError::Invalid { place: place.into(), fault: fault.into() }
}

fn unsupported(place: impl Into<String>, reason: impl Into<String>) -> PlanError {
    PlanError::Unsupported { place: place.into(), reason: reason.into() }
}
