//! Errors of opening and verifying an image.

use std::io;
use std::path::PathBuf;

use sandbox_host::{Classified, Kind};

use crate::digest::Digest;

/// An error of opening or verifying an image. Each text names the file, what was found and expected,
/// and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The directory or a file of the image does not exist.
    #[error("{path} does not exist; build the image: `{command}`")]
    Missing {
        /// Its path.
        path: PathBuf,
        /// The command that builds the image.
        command: String,
    },
    /// A file operation failed.
    #[error("cannot {verb} {path}")]
    Io {
        /// The operation.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others than root can change a file.
    #[error(
        "{path} has owner {uid} and mode {mode:03o}, so others could change what Pods boot; \
         it must be owned by root and writable by no other user: `chown root {path}; chmod go-w {path}`"
    )]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is not a regular file, or the image not a directory.
    #[error("{path} is {found}, not {expected}; rebuild the image: `{command}`")]
    Type {
        /// The file.
        path: PathBuf,
        /// Its type.
        found: &'static str,
        /// The expected type.
        expected: &'static str,
        /// The command that builds the image.
        command: String,
    },
    /// The manifest cannot be parsed.
    #[error("{path} is not a guest image's manifest; rebuild the image: `{command}`")]
    Json {
        /// The manifest.
        path: PathBuf,
        /// The command that builds the image.
        command: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The manifest has the format of another version.
    #[error("{path} has format {found}, not {expected}; rebuild the image: `{command}`")]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this version.
        expected: u32,
        /// The command that builds the image.
        command: String,
    },
    /// A field of the manifest is invalid.
    #[error("{path}: {key} is {value:?}, but must be {expected}; rebuild the image: `{command}`")]
    Field {
        /// The manifest.
        path: PathBuf,
        /// The field.
        key: &'static str,
        /// Its value.
        value: String,
        /// The requirement.
        expected: &'static str,
        /// The command that builds the image.
        command: String,
    },
    /// The agent in the image speaks another protocol than the shim.
    #[error(
        "the agent in {dir} speaks protocol {found}, this program {expected}; build the image with \
         the agent of this version: `{command}`"
    )]
    Protocol {
        /// The image.
        dir: PathBuf,
        /// The agent's protocol.
        found: u32,
        /// The caller's protocol.
        expected: u32,
        /// The command that builds the image.
        command: String,
    },
    /// A file has another size than in the manifest.
    #[error(
        "{path} has {found} bytes, not {expected} as in its manifest; rebuild the image: `{command}`"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The manifest's entry.
        expected: u64,
        /// The command that builds the image.
        command: String,
    },
    /// A file has another digest than in the manifest.
    #[error(
        "{path} has SHA-256 {found}, not {expected} as in its manifest; rebuild the image: `{command}`"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: Digest,
        /// The manifest's entry.
        expected: Digest,
        /// The command that builds the image.
        command: String,
    },
}

impl Classified for GuestError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing { .. } => Kind::Unavailable,
            Self::Io { .. } => Kind::Internal,
            Self::Untrusted { .. }
            | Self::Type { .. }
            | Self::Json { .. }
            | Self::Format { .. }
            | Self::Field { .. }
            | Self::Protocol { .. }
            | Self::Size { .. }
            | Self::Content { .. } => Kind::FailedPrecondition,
        }
    }
}
