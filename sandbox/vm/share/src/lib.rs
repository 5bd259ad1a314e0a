//! The Pod's shared directory and the virtiofsd that serves it to the guest.
//!
//! ```text
//! <dir>/backing/<container>/...    mount points; only this process writes here
//! <dir>/share/...                  the same directory, bound read-only: what virtiofsd serves
//! <dir>/share/<container>/rootfs   a container's root file system
//! <dir>/share/.volumes/<name>       a volume, the same for all containers that have it
//! <dir>/fs.sock, <dir>/virtiofsd.log
//! <dir>/disks/<id>                a disk that the VMM may open
//! <dir>/vmm/...                   the VMM's own
//! ```
//!
//! * The guest is not trusted, and virtiofsd lets it write wherever a mount is writable. Mount points
//!   are created below `backing`, which is not served, and `share` is read-only around the mounts: a
//!   guest cannot put a symbolic link where the host mounts next. Nothing is ever mounted below a
//!   container's root file system on the host.
//! * All mounts are made by the Pod's [`Host`](sandbox_host::Host), in a mount namespace of its own ([`Host::with_private_mounts`](sandbox_host::Host::with_private_mounts)): in
//!   the host's namespace the mount points are empty.
//! * `share` is a shared mount with a peer group of its own, so that mounts made later reach
//!   virtiofsd's own mount namespace. Volumes are private or slave mounts: unmounting one never
//!   unmounts anything on the host.
//! * A read-only mount is read-only on the host: flags inside the guest protect nothing.
//! * virtiofsd announces submounts, so that files of two mounts with the same inode number are
//!   two files in the guest.
//! * virtiofsd runs in its own mount, pid and network namespace with its seccomp filter and the
//!   capabilities it keeps by itself. It dies with this process and is never restarted: the
//!   guest's open files would be lost.
//! * After a container is deleted, the guest caches its directories until it looks up
//!   `<share>/<container>` again; virtiofsd then closes what it holds of them.

#![forbid(unsafe_code)]

mod disks;
mod error;
mod leftover;
mod program;
mod share;
#[cfg(test)]
mod tests;
mod tree;
mod volumes;

pub use disks::disks_dir;
pub use error::ShareError;
pub use program::Virtiofsd;
pub use share::{Share, purge};
pub use tree::{Shared, SharedMount, Tree, VOLUMES, Volume};
pub use volumes::Volumes;
