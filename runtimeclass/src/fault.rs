//! Faults of a handler's configuration.

use std::fmt;
use std::path::PathBuf;

use sandbox_core::{Classified, Kind};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "handler configuration {path}: {source}; set ConfigPath in containerd's runtime options \
         to an existing file"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file that the shim's own name chose cannot be read.
    #[error(
        "handler configuration {path}: {source}; the name under which the shim was called chose \
         this file: create it, or set ConfigPath in the runtime options to an existing one"
    )]
    Named {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{place} is not valid TOML: {message}")]
    Syntax {
        /// The file, or the inline options.
        place: String,
        /// Line, column and reason.
        message: String,
    },
    /// All wrong keys and values.
    #[error("{place}: {}", Joined(faults))]
    Faults {
        /// The file, or the inline options.
        place: String,
        /// One line each.
        faults: Vec<String>,
    },
    /// The options have a type that this shim does not read.
    #[error(
        "runtime options of type {0:?} are not supported; use TypeUrl \"runtimeoptions.v1.Options\" \
         with ConfigPath (with runtime_type \"io.containerd.runc.v2\": BinaryName)"
    )]
    OptionsType(String),
}

impl Classified for ConfigError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unreadable { source, .. } | Self::Named { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::PermissionDenied,
            },
            Self::Syntax { .. } | Self::Faults { .. } | Self::OptionsType(_) => {
                Kind::InvalidArgument
            }
        }
    }
}

struct Joined<'a>(&'a [String]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}
