//! Errors of credential sources. Messages contain file names and keys, never values.

use std::path::PathBuf;

use sandbox_core::{Classified, Kind};
use sandbox_host::HostError;

/// Why a credential source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file or directory cannot be read.
    #[error("cannot read the credentials in {path}")]
    Read {
        /// The path.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The content is invalid.
    #[error("{location}: {why}")]
    Content {
        /// The file or document, and the entry in it.
        location: String,
        /// What is wrong, without any value.
        why: String,
    },
    /// The type of a Secret is not one for registry credentials.
    #[error(
        "{location}: Secret of type {kind:?} cannot be an imagePullSecret; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
    )]
    Type {
        /// The Secret's document.
        location: String,
        /// Its type.
        kind: String,
    },
    /// A credential helper could not be run.
    #[error("credential helper {program:?} (named in {location})")]
    Run {
        /// The helper.
        program: String,
        /// The configuration that names it.
        location: String,
        /// The cause.
        source: HostError,
    },
    /// A credential helper failed or returned no valid credential.
    #[error("credential helper {program:?} (named in {location}): {why}")]
    Helper {
        /// The helper.
        program: String,
        /// The configuration that names it.
        location: String,
        /// What is wrong, without any value.
        why: String,
    },
}

impl CredentialError {
    pub(super) fn content(location: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Content { location: location.into(), why: why.into() }
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
