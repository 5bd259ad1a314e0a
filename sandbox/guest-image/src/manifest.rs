//! An image's manifest.

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::GuestError;
use crate::file::{self, build_command};

/// The format of manifests that this version writes and reads.
pub const FORMAT: u32 = 1;

/// The manifest's name in the image's directory.
pub const MANIFEST: &str = "guest.json";

/// Upper bound in bytes on a manifest.
const SIZE_MAX: u64 = 256 * 1024;

/// The contents of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the protocol that the agent speaks.
    pub protocol: u32,
    /// The kernel's origin.
    pub kernel: Kernel,
    /// The agent.
    pub agent: Agent,
    /// The kernel.
    pub vmlinux: ImageFile,
    /// The initramfs.
    pub initramfs: ImageFile,
    /// The names of the modules that the guest loads at boot, in this order.
    pub modules: Vec<String>,
}

/// A kernel's origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Debian's package; `None` for a kernel from a file.
    pub package: Option<String>,
    /// The package's version.
    pub version: Option<String>,
    /// The output of `uname -r` in the guest.
    pub release: String,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// The digest of its program.
    pub sha256: Digest,
    /// The size of its program in bytes.
    pub size: u64,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Its name in the image's directory.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// The one field that every format has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Manifest {
    /// Reads and validates the manifest of the image `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, GuestError> {
        let path = dir.join(MANIFEST);
        let (file, _) = file::open(dir, MANIFEST)?;
        let mut bytes = Vec::new();
        // A longer one is cut, which is a parse error.
        file.take(SIZE_MAX).read_to_end(&mut bytes).map_err(|source| GuestError::Io {
            verb: "read",
            path: path.clone(),
            source,
        })?;
        let json =
            |source| GuestError::Json { path: path.clone(), command: build_command(dir), source };
        let Format { format } = serde_json::from_slice(&bytes).map_err(json)?;
        if format != FORMAT {
            let command = build_command(dir);
            return Err(GuestError::Format { path, found: format, expected: FORMAT, command });
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(json)?;
        manifest.check(dir)?;
        Ok(manifest)
    }

    /// The bytes of the manifest's file.
    #[cfg(feature = "build")]
    pub(crate) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn check(&self, dir: &Path) -> Result<(), GuestError> {
        let field = |key, value: &str, expected| GuestError::Field {
            path: dir.join(MANIFEST),
            key,
            value: value.to_owned(),
            expected,
            command: build_command(dir),
        };
        let names =
            [("vmlinux.file", &self.vmlinux.file), ("initramfs.file", &self.initramfs.file)];
        for (key, name) in names {
            if !is_plain_name(name) {
                return Err(field(key, name, "the name of a file in the same directory"));
            }
        }
        for (key, file) in [("vmlinux.size", &self.vmlinux), ("initramfs.size", &self.initramfs)] {
            if file.size == 0 {
                return Err(field(key, "0", "more than 0"));
            }
        }
        match self.modules.iter().find(|name| !is_plain_name(name)) {
            Some(name) => Err(field("modules", name, "names of kernel modules")),
            None => Ok(()),
        }
    }
}

/// Whether `name` is a single path component without special characters.
fn is_plain_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for good in ["vmlinux", "initramfs.cpio.zst", "a-b_c+d", "virtio-rng"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "/etc/passwd", "a/b", "../x", ".hidden", "a b", "a\0", "ä"] {
            assert!(!is_plain_name(bad), "{bad}");
        }
        assert!(!is_plain_name(&"a".repeat(256)));
    }
}
