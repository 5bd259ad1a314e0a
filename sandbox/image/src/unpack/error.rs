//! Errors of unpacking.

use std::io;
use std::path::{Path, PathBuf};

use sandbox_core::{Classified, Kind};

/// A layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An I/O error.
    #[error("cannot {verb} {path:?} of the layer")]
    Io {
        /// The operation.
        verb: &'static str,
        /// The entry.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The archive or its compression is invalid.
    #[error("the layer is corrupt")]
    Corrupt(#[source] io::Error),
    /// An entry is unsafe or unsupported.
    #[error("layer entry {path:?} is refused: {why}")]
    Refused {
        /// The entry.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The layers exceed a limit.
    #[error("the layers have more than {limit} {what}")]
    TooMuch {
        /// `entries` or `bytes`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The content does not match the image's configuration.
    #[error("the layer has the diff ID {actual}, but {expected} in the image's configuration")]
    DiffId {
        /// The digest in the configuration.
        expected: String,
        /// The digest of the layer.
        actual: String,
    },
}

impl UnpackError {
    pub(super) fn refuse(path: &Path, why: &'static str) -> Self {
        Self::Refused { path: path.to_owned(), why }
    }

    pub(super) fn io<E: Into<io::Error>>(
        verb: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source: source.into() }
    }
}

impl Classified for UnpackError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { .. } | Self::Corrupt(_) => Kind::Internal,
            Self::Refused { .. } | Self::TooMuch { .. } | Self::DiffId { .. } => {
                Kind::FailedPrecondition
            }
        }
    }
}
