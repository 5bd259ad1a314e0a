//! Why an image was not pulled.

use std::path::PathBuf;

use pod_runner::CriError;
use sandbox_image::CredentialError;
use sandbox_image::LayoutError;
use sandbox_image::PlatformError;
use sandbox_image::ReferenceError;
use sandbox_image::RegistryError;
use sandbox_image::UnpackError;

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
    /// The runtime did not pull it.
    #[error(transparent)]
    Runtime(#[from] pod_runner::PullError),
    /// The standard input holds no password.
    #[error("cannot read the password from the standard input: {0}")]
    Password(String),
    /// Credential helpers cannot be run.
    #[error(transparent)]
    Helpers(#[from] sandbox_host::HostError),
    /// Files cannot be unpacked there.
    #[error("{path} is not an empty directory; rootfs: needs one, or a path that does not exist")]
    NotEmpty {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory could not be used.
    #[error("cannot use {path}")]
    File {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
}
