//! Why an image cannot be used.

use std::io;
use std::path::PathBuf;

use sandbox_core::error::{Classified, Kind};

use crate::Digest;
use crate::manifest::FORMAT;

/// Why an image cannot be used. Each text names the file, what was found, what was expected, and
/// what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A part is not there.
    #[error("{path} is not there; make the image: `{mend}`")]
    Missing {
        /// The part.
        path: PathBuf,
        /// The command that makes the image.
        mend: String,
    },
    /// The file system refused.
    #[error("cannot {verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others than root may change a part.
    #[error(
        "{path} has owner {uid} and mode {mode:03o}, so that others could change what Pods boot; \
         it must belong to root and nobody else may write it: `chown root {path}; chmod go-w {path}`"
    )]
    Untrusted {
        /// The part.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A part is no plain file, or the image no directory.
    #[error("{path} is {found}, not {expected}; build the image anew: `{mend}`")]
    Type {
        /// The part.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it must be.
        expected: &'static str,
        /// The command that makes the image.
        mend: String,
    },
    /// The manifest cannot be read.
    #[error("{path} is not a guest image's manifest; build the image anew: `{mend}`")]
    Json {
        /// The manifest.
        path: PathBuf,
        /// The command that makes the image.
        mend: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The manifest is of another version of this program.
    #[error("{path} has format {found}, not {FORMAT}; build the image anew: `{mend}`")]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The command that makes the image.
        mend: String,
    },
    /// The manifest says something impossible.
    #[error("{path}: {key} is {value:?}, but must be {expected}; build the image anew: `{mend}`")]
    Field {
        /// The manifest.
        path: PathBuf,
        /// The field.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
        /// The command that makes the image.
        mend: String,
    },
    /// The agent in the image speaks another protocol than the shim.
    #[error(
        "the agent in {dir} speaks protocol {found}, this program {expected}; build the image with \
         the agent of this version: `{mend}`"
    )]
    Protocol {
        /// The image.
        dir: PathBuf,
        /// What the agent speaks.
        found: u32,
        /// What the caller speaks.
        expected: u32,
        /// The command that makes the image.
        mend: String,
    },
    /// A part has another size than the manifest says.
    #[error(
        "{path} has {found} bytes, not {expected} as its manifest says; build the image anew: `{mend}`"
    )]
    Size {
        /// The part.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The manifest's.
        expected: u64,
        /// The command that makes the image.
        mend: String,
    },
    /// A part has another content than the manifest says.
    #[error(
        "{path} has SHA-256 {found}, not {expected} as its manifest says; build the image anew: `{mend}`"
    )]
    Content {
        /// The part.
        path: PathBuf,
        /// Its digest.
        found: Digest,
        /// The manifest's.
        expected: Digest,
        /// The command that makes the image.
        mend: String,
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
