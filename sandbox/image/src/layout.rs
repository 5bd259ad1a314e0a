//! An OCI image layout on disk, updated atomically.
//!
//! Blobs are written to a staging folder inside the layout and moved into place when all of them
//! are complete and verified. The next pull removes the staging folder of one that was killed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, ImageIndex};
use rustix::fs::{FlockOperation, flock};
use sandbox_core::{Classified, Kind};

use crate::digest::Verifier;
use crate::reference::Reference;

const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const STAGE: &str = ".pull";
/// Annotation with the tag, by the specification; read by skopeo.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the full name, required by containerd's import.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Why a layout cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// An I/O error.
    #[error("cannot {verb} {path}")]
    Io {
        /// The operation.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The directory contains something else.
    #[error(
        "{path} is neither empty nor an OCI layout (it has no oci-layout file); use another directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Another pull holds the lock.
    #[error("{path}: another pull is writing to it; wait for it or use another directory")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// `index.json` is invalid.
    #[error("{path} is not the index of an OCI layout")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl LayoutError {
    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

impl Classified for LayoutError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Kind::PermissionDenied
            }
            Self::Io { .. } => Kind::Internal,
            Self::Foreign { .. } => Kind::InvalidArgument,
            Self::Busy { .. } | Self::Index { .. } => Kind::FailedPrecondition,
        }
    }
}

/// A pending change to a layout. Dropping it without a commit leaves the layout
/// unchanged.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    /// Held for the lifetime of the stage to exclude other pulls.
    _lock: File,
    /// Whether the directory was created by this stage.
    created: bool,
    staged: Vec<Digest>,
    committed: bool,
}

impl Stage {
    /// Opens a layout, or creates one in an empty or missing directory.
    ///
    /// # Errors
    ///
    /// When the directory contains something else, another pull is in progress, or I/O fails.
    pub fn open(directory: &Path) -> Result<Self, LayoutError> {
        let created = match fs::create_dir(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(LayoutError::io("create", directory)(error)),
        };
        let lock = File::open(directory).map_err(LayoutError::io("open", directory))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(LayoutError::Busy { path: directory.to_owned() });
        }
        let stage = Self {
            directory: directory.to_owned(),
            _lock: lock,
            created,
            staged: Vec::new(),
            committed: false,
        };
        stage.remove_stage()?;
        if !directory.join("oci-layout").exists() {
            let mut entries =
                fs::read_dir(directory).map_err(LayoutError::io("read", directory))?;
            if entries.next().is_some() {
                return Err(LayoutError::Foreign { path: directory.to_owned() });
            }
        }
        let path = stage.path();
        fs::create_dir(&path).map_err(LayoutError::io("create", &path))?;
        Ok(stage)
    }

    fn path(&self) -> PathBuf {
        self.directory.join(STAGE)
    }

    fn remove_stage(&self) -> Result<(), LayoutError> {
        let path = self.path();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LayoutError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
    }

    /// Whether the layout has a blob with the right content, which is read in full.
    pub(crate) fn has(&self, blob: &Descriptor) -> Result<bool, LayoutError> {
        let path = self.place(blob.digest());
        let error = |source| LayoutError::io("read", &path)(source);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(error(source)),
        };
        if file.metadata().map_err(error)?.len() != blob.size() {
            return Ok(false);
        }
        let Some(mut verifier) = Verifier::new(blob.digest()) else { return Ok(false) };
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer).map_err(error)? {
                0 => return Ok(verifier.finish() == blob.digest().as_ref()),
                read => verifier.update(&buffer[..read]),
            }
        }
    }

    /// Creates an empty file for a blob; its path is for messages.
    pub(crate) fn file(&mut self, digest: &Digest) -> Result<(File, PathBuf), LayoutError> {
        let path = self.staged_path(digest);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(LayoutError::io("create", &path))?;
        if !self.staged.contains(digest) {
            self.staged.push(digest.clone());
        }
        Ok((file, path))
    }

    fn staged_path(&self, digest: &Digest) -> PathBuf {
        self.path().join(format!("{}-{}", digest.algorithm(), digest.digest()))
    }

    /// Adds a verified blob.
    pub(crate) fn add(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), LayoutError> {
        let (mut file, path) = self.file(digest)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_data());
        written.map_err(LayoutError::io("write", &path))
    }

    /// Reads a blob that is staged or already in the layout.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>, LayoutError> {
        let staged = self.staged_path(digest);
        let path = if staged.exists() { staged } else { self.place(digest) };
        fs::read(&path).map_err(LayoutError::io("read", &path))
    }

    /// Moves the blobs into place and adds the image to the layout's index, where it replaces an
    /// image of the same name. After an error the index is unchanged.
    pub(crate) fn commit(
        mut self,
        image: &Descriptor,
        name: &Reference,
    ) -> Result<(), LayoutError> {
        let index = self.index(image, name)?;
        for digest in &self.staged {
            let place = self.place(digest);
            let parent = place.parent().unwrap_or(&self.directory);
            fs::create_dir_all(parent).map_err(LayoutError::io("create", parent))?;
            let staged = self.staged_path(digest);
            fs::rename(&staged, &place).map_err(LayoutError::io("move", &staged))?;
        }
        self.write("oci-layout", MARKER.as_bytes())?;
        self.write("index.json", &index)?;
        self.committed = true;
        self.remove_stage()
    }

    fn index(&self, image: &Descriptor, name: &Reference) -> Result<Vec<u8>, LayoutError> {
        let path = self.directory.join("index.json");
        let mut index = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<ImageIndex>(&text)
                .map_err(|source| LayoutError::Index { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut index = ImageIndex::default();
                index.set_schema_version(2);
                index
            }
            Err(error) => return Err(LayoutError::io("read", &path)(error)),
        };
        let full = name.to_string();
        let mut annotations = HashMap::from([(IMAGE_NAME.to_owned(), full.clone())]);
        if let Some(tag) = name.tag() {
            annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        let mut entries: Vec<Descriptor> = index.manifests().clone();
        let known = |entry: &Descriptor, key: &str, value: &str| {
            let annotations = entry.annotations().as_ref();
            annotations.and_then(|all| all.get(key)).is_some_and(|it| it == value)
        };
        // skopeo finds an image by its tag alone, so a tag must be unique.
        entries.retain(|entry| {
            let same = name.tag().is_some_and(|tag| known(entry, REF_NAME, tag));
            !same && !known(entry, IMAGE_NAME, &full)
        });
        let mut entry = image.clone();
        entry.set_annotations(Some(annotations));
        entries.push(entry);
        index.set_manifests(entries);
        serde_json::to_vec(&index).map_err(|source| LayoutError::Index { path, source })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let part = self.path().join(name);
        let path = self.directory.join(name);
        let written = File::create(&part)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()));
        written.map_err(LayoutError::io("write", &path))?;
        fs::rename(&part, &path).map_err(LayoutError::io("write", &path))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = self.remove_stage() {
            tracing::warn!("{error}");
        }
        if self.created {
            // Fails if blobs were moved before an error; they are complete and may stay.
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests;
