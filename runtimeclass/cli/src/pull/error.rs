//! Why an image was not pulled.

use std::path::PathBuf;

use sandbox_image::{
    CredentialError, LayoutError, PlatformError, ReferenceError, RegistryError, UnpackError,
};

use crate::cri::CriError;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Pull(#[from] sandbox_image::PullError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The runtime was shown credentials, and refused with each.
    #[error("not pulled with {} (`bulkhead pull --check` tells more)", .tries.join(", nor with "))]
    Refused {
        /// The credentials that were tried, each with its origin.
        tries: Vec<String>,
        /// What the runtime said to the last one.
        source: CriError,
    },
    /// The runtime has no such handler.
    #[error("the runtime has no handler {handler:?}; it has {}", .there.join(", "))]
    Handler {
        /// What was asked for.
        handler: String,
        /// What is there.
        there: Vec<String>,
    },
    /// The standard input holds no password.
    #[error("cannot read the password from the standard input: {0}")]
    Password(String),
    /// Credential helpers cannot be run.
    #[error(transparent)]
    Helpers(#[from] sandbox_core::host::HostError),
    /// Files cannot be unpacked there.
    #[error("{path} is not an empty directory; rootfs: wants one, or a path that is not there")]
    NotEmpty {
        /// The path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot use {path}")]
    File {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_refusal_is_told_once() {
        let tries = ["user \"bob\" of a.yaml", "user \"eve\" of b.yaml"].map(str::to_owned);
        let status = Box::new(Status::unknown("401 Unauthorized"));
        let source = CriError::Call { verb: "pull image", object: "reg.example/a".into(), status };
        let error = PullError::Refused { tries: tries.into(), source };
        assert_eq!(
            crate::chain(&error),
            "not pulled with user \"bob\" of a.yaml, nor with user \"eve\" of b.yaml \
             (`bulkhead pull --check` tells more): pull image reg.example/a: 401 Unauthorized"
        );
    }
}
