//! The Pod's shared directory and the virtiofsd that serves it to the guest.
//!
//! ```text
//! <dir>/backing/<container>/...    mount points; only this process writes here
//! <dir>/share/...                  the same directory, bound read-only: what virtiofsd serves
//! <dir>/share/<container>/rootfs   a container's root file system
//! <dir>/share/.volumes/<name>       a volume, the same for all containers that have it
//! <dir>/fs.sock, <dir>/virtiofsd.log
//! <dir>/disks/<id>                a disk that the machine's monitor may open
//! <dir>/vmm/...                   the monitor's own
//! ```
//!
//! * The guest is hostile, and virtiofsd lets it write wherever a mount lets it. Mount points are
//!   made below `backing`, which is not served, and what is served is read-only around the
//!   mounts: a guest cannot put a symbolic link where the host mounts next. Nothing is ever
//!   mounted below a container's root file system on the host.
//! * All mounts are made where the machine's [`Host`] makes them, in a mount namespace of its own
//!   ([`Host::apart`]): the host sees the mount points empty.
//! * `share` is a shared mount with a peer group of its own, so that mounts made later reach
//!   virtiofsd's mount namespace, which is another one again. Volumes are private or slave mounts:
//!   taking one down never takes a mount of the host with it.
//! * What is mounted read-only is read-only on the host: a guest's own flags bind nobody.
//! * virtiofsd announces submounts, so that files of two mounts with the same inode number are
//!   two files in the guest.
//! * virtiofsd runs in its own mount, pid and network namespace with its seccomp filter and the
//!   capabilities it keeps by itself. It dies with this process and is never restarted: the
//!   guest's open files would be lost.
//! * When a container is gone the guest still knows its directories until it looks at
//!   `<share>/<container>` again; a look there lets virtiofsd drop what it holds of them.

#![forbid(unsafe_code)]

pub mod disks;
mod error;
mod leftover;
mod program;
mod share;
#[cfg(test)]
mod tests;
mod tree;
mod volumes;

pub use error::ShareError;
pub use program::Virtiofsd;
pub use share::{Share, purge};
pub use tree::{Shared, SharedMount, Tree, VOLUMES, Volume};
pub use volumes::Volumes;
