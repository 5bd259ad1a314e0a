//! Why a layer was not unpacked.

use std::io;
use std::path::{Path, PathBuf};

use sandbox_core::{Classified, Kind};

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The file system refused.
    #[error("cannot {verb} {path:?} of the layer")]
    Io {
        /// What was to be done.
        verb: &'static str,
        /// With which entry.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The archive or its compression is broken.
    #[error("the layer is broken")]
    Broken(#[source] io::Error),
    /// An entry is not unpacked on principle.
    #[error("layer entry {path:?} is refused: {why}")]
    Refused {
        /// The entry.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The layers are larger than allowed.
    #[error("the layers have more than {limit} {what}")]
    TooMuch {
        /// Entries or bytes.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The content is not what the image's configuration says.
    #[error("the layer unpacks to {is}, not to the {wanted} of the image's configuration")]
    DiffId {
        /// The digest in the configuration.
        wanted: String,
        /// The digest of what was unpacked.
        is: String,
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
            Self::Io { .. } | Self::Broken(_) => Kind::Internal,
            Self::Refused { .. } | Self::TooMuch { .. } | Self::DiffId { .. } => {
                Kind::FailedPrecondition
            }
        }
    }
}
