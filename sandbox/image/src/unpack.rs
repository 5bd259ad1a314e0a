//! Layers onto a directory, whoever made them.
//!
//! No entry reaches outside of the root: a path is resolved by the kernel with the root as its
//! top (`RESOLVE_IN_ROOT`), its last part is never followed, `..` in a name is refused, devices are
//! not made, and only extended attributes that mean nothing to the host are set.

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

/// A file of this name takes away the one after the prefix.
const WHITEOUT: &[u8] = b".wh.";
/// A file of this name hides what lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix were aufs's own.
const AUFS: &[u8] = b".wh..wh.";

/// What may follow the end of an archive.
const TRAILER: u64 = 1 << 20;

/// What a layer may ask of the host.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries in all layers.
    pub entries: u64,
    /// Bytes of all files of all layers, as they are on disk. A layer out of its compression may
    /// have as many, and a KiB for each entry, but no more, whatever fills it.
    pub bytes: u64,
}

impl Limits {
    /// The largest layer out of its compression.
    fn stream(&self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(1024)).saturating_add(TRAILER)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 256 << 30 }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries that were made.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Entries that whiteouts took away.
    pub removed: u64,
    /// Devices that were not made.
    pub devices: u64,
}

/// Unpacks layers, the lowest first, onto one directory.
#[derive(Debug)]
pub struct Unpacker {
    tree: Tree,
    limits: Limits,
    total: Unpacked,
}

impl Unpacker {
    /// Unpacks onto an existing directory. Owners are set only if `owners` (that needs root).
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(root: &Path, limits: Limits, owners: bool) -> Result<Self, UnpackError> {
        Ok(Self { tree: Tree::open(root, owners)?, limits, total: Unpacked::default() })
    }

    /// What was unpacked so far.
    pub fn total(&self) -> Unpacked {
        self.total
    }

    /// Unpacks one layer: tar, or tar in gzip or zstd. The digest is that of the tar
    /// (`diff_id`); after an error the directory holds a part of the layer and is of no use.
    ///
    /// # Errors
    ///
    /// When the layer is broken, reaches out, is larger than allowed, or is not what its digest
    /// says; when the file system refuses.
    pub fn layer(
        &mut self,
        layer: impl BufRead,
        diff_id: Option<&Digest>,
    ) -> Result<(), UnpackError> {
        let tar = compression::decoded(layer)?;
        let source = Bounded { left: self.limits.stream(), source: tar };
        let mut hashed = Hashed { verifier: diff_id.and_then(Verifier::new), source };
        let mut made = BTreeSet::new();
        let mut reader = Reader::new(&mut hashed);
        reader.each(|entry| self.entry(entry, &mut made))?;
        // What follows the end mark counts in the digest, and not without bound.
        let rest = io::copy(&mut (&mut hashed).take(TRAILER), &mut io::sink());
        if rest.map_err(UnpackError::Broken)? == TRAILER {
            return Err(UnpackError::refuse(
                Path::new("/"),
                "more than 1 MiB follows the end of the archive",
            ));
        }
        self.tree.settle()?;
        match (diff_id, hashed.verifier.map(Verifier::finish)) {
            (Some(wanted), Some(is)) if is != wanted.as_ref() => {
                Err(UnpackError::DiffId { wanted: wanted.to_string(), is })
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
                log::debug!("device {} is not made", path.display());
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
        self.tree.make(&mut entry)?;
        // Its parents count as this layer's own too: an opaque mark must not take them.
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
            self.total.removed += self.tree.hide(parent, made)?;
        } else if !name.starts_with(AUFS) {
            let hidden = OsString::from_vec(name[WHITEOUT.len()..].to_vec());
            if hidden.is_empty() || hidden == "." || hidden == ".." {
                return Err(UnpackError::refuse(path, "a whiteout of no name"));
            }
            self.total.removed += self.tree.remove(parent, &hidden)?;
        }
        Ok(())
    }
}

/// Ends with an error where an archive is larger than any that is allowed.
struct Bounded<R> {
    left: u64,
    source: R,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::other("out of its compression it is larger than is allowed")
        })?;
        Ok(read)
    }
}

/// Hashes what is read.
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
