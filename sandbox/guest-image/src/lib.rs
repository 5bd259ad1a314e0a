//! The guest image that a Pod's VM boots: a kernel, an initramfs with the agent, and a manifest that
//! describes them.
//!
//! An image is a directory (by default [`DEFAULT_DIR`]), written by `bulkhead guest build`:
//!
//! | file | content |
//! | --- | --- |
//! | `guest.json` | the [`Manifest`] |
//! | `vmlinux` | the kernel, an uncompressed ELF file with a PVH entry |
//! | `initramfs.cpio` | the agent as `/init`, kernel modules, and `/modules.list`: their paths in load order |
//!
//! [`GuestImage::open`] opens an image and [`GuestImage::verify_cached`] checks its digests without reading
//! unchanged files again. The feature `build` adds the module that builds one.

#![forbid(unsafe_code)]

#[cfg(feature = "build")]
pub mod build;
mod cache;
mod digest;
mod error;
mod file;
mod guest;
mod manifest;

pub use digest::{Digest, DigestError};
pub use error::GuestError;
pub use guest::{Checked, GuestImage};
pub use manifest::{Agent, FORMAT, ImageFile, Kernel, MANIFEST, Manifest};

/// Directory of the image if the handler's configuration names no other.
pub const DEFAULT_DIR: &str = "/usr/share/bulkhead/guest";
