//! Why credentials cannot be read. No message holds a value, only places.

use std::path::PathBuf;

use sandbox_core::host::HostError;
use sandbox_core::{Classified, Kind};

/// Why a source of credentials gives none.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file or directory cannot be read.
    #[error("cannot read the credentials in {path}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content is not what it should be.
    #[error("{place}: {why}")]
    Content {
        /// The file or document, and the entry in it.
        place: String,
        /// What is wrong, without any value.
        why: String,
    },
    /// A Secret of another type.
    #[error(
        "{place}: Secret of type {kind:?} cannot be an imagePullSecret; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
    )]
    Type {
        /// The Secret's document.
        place: String,
        /// Its type.
        kind: String,
    },
    /// A credential helper could not be run.
    #[error("credential helper {program:?} (named in {place})")]
    Run {
        /// The helper.
        program: String,
        /// The configuration that names it.
        place: String,
        /// Why.
        source: HostError,
    },
    /// A credential helper answered, but not with a credential.
    #[error("credential helper {program:?} (named in {place}): {why}")]
    Helper {
        /// The helper.
        program: String,
        /// The configuration that names it.
        place: String,
        /// What is wrong, without any value.
        why: String,
    },
}

impl CredentialError {
    pub(super) fn content(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Content { place: place.into(), why: why.into() }
    }
}

impl Classified for CredentialError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Kind::NotFound
            }
            Self::Read { .. } => Kind::PermissionDenied,
            Self::Content { .. } | Self::Type { .. } => Kind::InvalidArgument,
            Self::Run { source, .. } => source.kind(),
            Self::Helper { .. } => Kind::FailedPrecondition,
        }
    }
}
