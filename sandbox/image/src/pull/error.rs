//! Why an image was not pulled.

use std::io;
use std::path::PathBuf;

use sandbox_core::{Classified, Kind};

use crate::layout::LayoutError;
use crate::registry::RegistryError;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(RegistryError),
    /// It cannot be kept.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A blob cannot be written.
    #[error("cannot write {path}{}", mend(.source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no image for the platform.
    #[error("{image} is not there for {wanted}, only for {there}")]
    NoPlatform {
        /// The image.
        image: String,
        /// The platform that was asked for.
        wanted: String,
        /// The platforms that are there.
        there: String,
    },
    /// What the registry has is no container image.
    #[error("{image} is no container image: {why}")]
    NoImage {
        /// The reference.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// Sizes do not agree.
    #[error("{what} has {is} bytes, not the {should_be} that its index says")]
    Size {
        /// The part.
        what: String,
        /// Its size.
        is: u64,
        /// The size that was promised.
        should_be: u64,
    },
    /// A part is larger than is allowed.
    #[error("{what} has {is} bytes, which is more than the {limit} that are allowed")]
    TooLarge {
        /// The part.
        what: String,
        /// Its size.
        is: u64,
        /// The limit.
        limit: u64,
    },
}

fn mend(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the file system is full; make room, or give another directory"
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
            Self::NoImage { .. } | Self::TooLarge { .. } => Kind::FailedPrecondition,
            Self::Size { .. } => Kind::Internal,
        }
    }
}
