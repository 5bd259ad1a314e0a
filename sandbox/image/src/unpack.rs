//! Unpacks untrusted layers onto a directory.
//!
//! No entry can reach outside the root: the kernel resolves paths within it (`RESOLVE_IN_ROOT`),
//! the last component is never followed, `..` in a name is refused, devices are not created, and
//! only extended attributes without a meaning to the host are set.

mod compression;
mod entry;
mod error;
mod remove;
mod tree;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use oci_spec::image::Digest;

pub use error::UnpackError;

use crate::digest::Verifier;
use entry::{Entry, Kind, Reader};
use tree::Tree;

/// A file with this prefix removes the one named after the prefix.
const WHITEOUT: &[u8] = b".wh.";
/// A file with this name hides the contents of its directory from lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are metadata of aufs.
const AUFS: &[u8] = b".wh..wh.";

/// Upper bound on data after the end of an archive, in bytes.
const TRAILER: u64 = 1 << 20;

/// Resource limits of an unpacked image.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of entries in all layers.
    pub entries: u64,
    /// Total size of the files in all layers, in bytes. It also limits each decompressed layer,
    /// which may be larger by 1 KiB per allowed entry.
    pub bytes: u64,
}

impl Limits {
    /// The largest decompressed layer, in bytes.
    fn layer(&self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(1024)).saturating_add(TRAILER)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 256 << 30 }
    }
}

/// Counters of an unpacked image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries processed.
    pub entries: u64,
    /// Total size of the files, in bytes.
    pub bytes: u64,
    /// Entries removed by whiteouts.
    pub removed: u64,
    /// Devices skipped.
    pub devices: u64,
}

/// Unpacks layers onto a directory, the lowest first.
#[derive(Debug)]
pub struct Unpacker {
    tree: Tree,
    limits: Limits,
    total: Unpacked,
}

impl Unpacker {
    /// Unpacks onto an existing directory. Sets owners if `owners`, which requires root.
    ///
    /// # Errors
    ///
    /// When the directory cannot be opened.
    pub fn open(root: &Path, limits: Limits, owners: bool) -> Result<Self, UnpackError> {
        Ok(Self { tree: Tree::open(root, owners)?, limits, total: Unpacked::default() })
    }

    /// The counters of all layers so far.
    pub fn total(&self) -> Unpacked {
        self.total
    }

    /// Unpacks one layer: tar, plain or compressed with gzip or zstd. `diff_id` is the digest of
    /// the plain tar. After an error the directory contains part of the layer and should be
    /// discarded.
    ///
    /// # Errors
    ///
    /// When the layer is corrupt, has a refused entry, exceeds a limit or does not match `diff_id`,
    /// or on I/O errors.
    pub fn layer(
        &mut self,
        layer: impl BufRead,
        diff_id: Option<&Digest>,
    ) -> Result<(), UnpackError> {
        let tar = compression::decoded(layer)?;
        let source = Bounded { left: self.limits.layer(), source: tar };
        let mut hashed = Hashed { verifier: diff_id.and_then(Verifier::new), source };
        let mut made = BTreeSet::new();
        let mut reader = Reader::new(&mut hashed);
        reader.for_each(|entry| self.entry(entry, &mut made))?;
        // The digest includes what follows the end of the archive, which must be bounded.
        let rest = io::copy(&mut (&mut hashed).take(TRAILER), &mut io::sink());
        if rest.map_err(UnpackError::Corrupt)? == TRAILER {
            return Err(UnpackError::refuse(
                Path::new("/"),
                "more than 1 MiB follows the end of the archive",
            ));
        }
        self.tree.set_directory_times()?;
        match (diff_id, hashed.verifier.map(Verifier::finish)) {
            (Some(expected), Some(actual)) if actual != expected.as_ref() => {
                Err(UnpackError::DiffId { expected: expected.to_string(), actual })
            }
            _ => Ok(()),
        }
    }

    fn entry(
        &mut self,
        mut entry: Entry<'_>,
        made: &mut BTreeSet<PathBuf>,
    ) -> Result<(), UnpackError> {
        self.total.entries += 1;
        if self.total.entries > self.limits.entries {
            return Err(UnpackError::TooMuch { what: "entries", limit: self.limits.entries });
        }
        let path = entry.path.clone();
        let name = path.file_name().map(|name| name.to_owned().into_vec()).unwrap_or_default();
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&path, &name, made);
        }
        match &entry.kind {
            Kind::Device => {
                tracing::debug!(path = %path.display(), "device skipped");
                self.total.devices += 1;
                return Ok(());
            }
            Kind::File { size } => {
                self.total.bytes = self.total.bytes.saturating_add(*size);
                if self.total.bytes > self.limits.bytes {
                    return Err(UnpackError::TooMuch { what: "bytes", limit: self.limits.bytes });
                }
            }
            Kind::Directory | Kind::Symlink(_) | Kind::HardLink(_) | Kind::Fifo => {}
        }
        self.tree.create(&mut entry)?;
        // The parents also belong to this layer: an opaque whiteout must keep them.
        made.extend(path.ancestors().filter(|it| !it.as_os_str().is_empty()).map(Path::to_owned));
        Ok(())
    }

    fn whiteout(
        &mut self,
        path: &Path,
        name: &[u8],
        made: &BTreeSet<PathBuf>,
    ) -> Result<(), UnpackError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            self.total.removed += self.tree.clear_directory(parent, made)?;
        } else if !name.starts_with(AUFS) {
            let hidden = OsString::from_vec(name[WHITEOUT.len()..].to_vec());
            if hidden.is_empty() || hidden == "." || hidden == ".." {
                return Err(UnpackError::refuse(path, "it is a whiteout without a valid name"));
            }
            self.total.removed += self.tree.remove(parent, &hidden)?;
        }
        Ok(())
    }
}

/// Fails when more than `left` bytes are read.
struct Bounded<R> {
    left: u64,
    source: R,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("the decompressed layer is larger than allowed"))?;
        Ok(read)
    }
}

/// Hashes the bytes read.
struct Hashed<R> {
    verifier: Option<Verifier>,
    source: R,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&buffer[..read]);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
