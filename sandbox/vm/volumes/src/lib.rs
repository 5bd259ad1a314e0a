//! From a container's config.json, with paths of the host, to a config.json for the guest and what
//! the host has to provide for it.
//!
//! [`Facts::gather`] examines the paths of the configuration, [`plan`] decides and is pure. The rules,
//! each with its reason:
//!
//! **Root file system**
//!
//! * Mounts that are images or block devices (`erofs`, `ext4`, `xfs`, `btrfs`, and an `overlay` or
//!   `bind` on top whose options refer to them as `{{ mount 0 }}` and `{{ overlay 1 3 }}`: the
//!   mount manager of containerd 2.2 and later) become disks, which the guest reads without a
//!   file server. An overlay without a writable image gets its writable layer from the guest's
//!   memory, whatever directory the snapshotter provides: a guest's overlay cannot write
//!   through virtio-fs.
//! * Everything else is mounted on the host below the share, as the snapshotter asked.
//! * dm-verity and images that span several devices are refused rather than read unverified or
//!   in part. So are id-mapped ones.
//!
//! **Mounts**
//!
//! * A bind is mounted below the share, with its submounts if it has `rbind`, and read-only on
//!   the host if it is read-only (`rro`: with its submounts), since the guest is not trusted. The
//!   guest's mount is read-only as well, unless the host has submounts there that are to stay
//!   writable: to a guest they are one file system.
//!   All containers of a Pod with the same volume share one mount of it, since a guest's caches are
//!   per mount; an emptyDir is the Pod's own and is writable there, so that containers that may
//!   only read it see what the others write.
//!   `rslave` is kept between host and share, where it means something; in the guest each mount
//!   is private. `rshared` is refused: what a guest mounts cannot appear on the host.
//! * The Pod's `/dev/shm` is the guest's own, of the host's size: shared memory does not work
//!   through virtio-fs. It is recognised as the one that the Pod's first container has there.
//! * A memory emptyDir (`kubernetes.io~empty-dir`, the root of a tmpfs) is a tmpfs in the guest
//!   with the host's size, mode and owner, one for all containers of the Pod. Other tmpfs
//!   volumes (secrets, tokens, configuration) hold what the host writes, and stay shared.
//!   A subPath of a memory emptyDir is refused: it would be another directory than the one that the
//!   rest of the Pod sees. Huge pages are refused for the same reason.
//! * Sockets and fifos of the host are refused: virtio-fs shows them, but a guest cannot connect to
//!   their other end. `/dev` as a whole is refused, since the guest does not have its devices.
//! * A character device that every guest has is the guest's; a block device becomes a disk.
//! * `proc`, `sysfs`, `cgroup`, `mqueue`, `tmpfs`, `devpts` pass; options about the host's SELinux
//!   or cgroup mount are removed. Other types are refused.
//!
//! **Devices**
//!
//! * null, zero, full, random, urandom, tty, fuse and net/tun pass, block devices become disks,
//!   others are refused. Where a privileged Pod gets all devices of the host
//!   (`privileged_without_host_devices = false`), those a guest does not have are left out, and
//!   so are the host's disks.
//!
//! **The rest of the configuration**
//!
//! * Namespaces: network, IPC and UTS are the guest's own, so those entries are removed with the
//!   host's paths; the host name and the sysctls of the first container are the guest's as well. A
//!   process id namespace by path is the Pod's. Without one, or without an IPC namespace, the
//!   Pod wants the host's: refused. So are user namespaces: the share has no id mapping.
//! * cgroup path, AppArmor, SELinux, Intel RDT, cpusets, block I/O and RDMA limits
//!   are about the host's kernel and are removed. `linux.resources.devices` stays.
//! * Annotations: only CRI's names of the container and Pod stay.
//! * `root.path` is the agent's to set, `root.readonly` stays.

#![forbid(unsafe_code)]

mod config_json;
mod container;
mod devices;
mod error;
mod facts;
mod mounts;
mod names;
mod plan;
mod rootfs;
mod spec;
#[cfg(test)]
mod tests;

pub use container::plan;
pub use error::PlanError;
pub use facts::{Facts, Tmpfs};
pub use names::rename;
pub use plan::{
    BlockDevice, ContainerPlan, GUEST_ROOT, GuestDisk, GuestPlan, PodState, Request, Rootfs,
    SHARE_MOUNT, Storage, StorageSource,
};
