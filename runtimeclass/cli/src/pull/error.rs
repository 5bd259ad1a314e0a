//! Why an image was not pulled.

use std::path::PathBuf;

use sandbox_image::credential::CredentialError;
use sandbox_image::layout::LayoutError;
use sandbox_image::platform::PlatformError;
use sandbox_image::reference::ReferenceError;
use sandbox_image::registry::RegistryError;
use sandbox_image::unpack::UnpackError;

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
    Pull(#[from] sandbox_image::pull::PullError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The runtime refused, whatever it was shown.
    #[error("{source}{}", shown(.tries))]
    Refused {
        /// The credentials that were tried before the last one.
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

fn shown(tries: &[String]) -> String {
    match tries {
        [] => String::new(),
        tries => format!(" (shown: {}; `bulkhead pull --check` tells more)", tries.join(", ")),
    }
}
