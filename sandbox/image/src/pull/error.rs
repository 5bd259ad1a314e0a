//! Errors of a pull.

use std::io;
use std::path::PathBuf;

use sandbox_core::{Classified, Kind};

use crate::layout::LayoutError;
use crate::registry::RegistryError;

/// A pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A request to the registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout cannot be read or written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A blob cannot be written.
    #[error("cannot write {path}{}", remedy(.source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// There is no image for the platform.
    #[error("{image} is not available for {wanted}, only for {available}")]
    NoPlatform {
        /// The image.
        image: String,
        /// The requested platform.
        wanted: String,
        /// The available platforms.
        available: String,
    },
    /// The content is not a container image.
    #[error("{image} is not a container image: {why}")]
    NotAnImage {
        /// The reference.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// The size of a manifest is not the one in its index.
    #[error("{what} has {actual} bytes, but {expected} in its index")]
    Size {
        /// The part.
        what: String,
        /// Its size.
        actual: u64,
        /// Its size in the index.
        expected: u64,
    },
    /// A part exceeds its size limit.
    #[error("{what} has {actual} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The part.
        what: String,
        /// Its size.
        actual: u64,
        /// The limit.
        limit: u64,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the file system is full; free some space or use another directory"
        }
        _ => "",
    }
}

impl Classified for PullError {
    fn kind(&self) -> Kind {
        match self {
            Self::Registry(error) => error.kind(),
            Self::Layout(error) => error.kind(),
            Self::Write { .. } => Kind::Unavailable,
            Self::NoPlatform { .. } => Kind::NotFound,
            Self::NotAnImage { .. } | Self::TooLarge { .. } => Kind::FailedPrecondition,
            Self::Size { .. } => Kind::Internal,
        }
    }
}
