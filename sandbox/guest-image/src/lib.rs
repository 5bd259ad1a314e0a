//! What a Pod's machine boots: a kernel, an initramfs with the agent in it, and the manifest that
//! says what they are.
//!
//! An image is a directory (by default [`DEFAULT_DIR`]), written by `bulkhead guest build`:
//!
//! | file | what it is |
//! | --- | --- |
//! | `guest.json` | the [`Manifest`] |
//! | `vmlinux` | the kernel, an uncompressed ELF file with a PVH entry |
//! | `initramfs.cpio` | the agent as `/init`, kernel modules, and `/modules.list`: their paths in load order |
//!
//! [`Guest::open`] reads one and [`Guest::verify_cached`] checks its digests without reading
//! unchanged files again. The feature `build` adds the part that makes one.

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
pub use guest::{Checked, Guest};
pub use manifest::{Agent, FORMAT, ImageFile, Kernel, MANIFEST, Manifest};

/// Where the image is unless the handler's file says otherwise.
pub const DEFAULT_DIR: &str = "/usr/share/bulkhead/guest";
