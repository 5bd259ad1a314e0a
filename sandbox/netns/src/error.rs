//! Errors of work in a Pod's network namespace.

use std::io;
use std::path::PathBuf;

use sandbox_host::{Classified, Kind};

/// An error of work in a Pod's network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path is empty or names this process's own namespace.
    #[error("the Pod has no network namespace of its own")]
    Own,
    /// It cannot be entered.
    #[error("entering network namespace {path}")]
    Enter {
        /// The namespace's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel lacks a feature.
    #[error("the host's kernel lacks {part}, which needs {fix}")]
    Kernel {
        /// The feature.
        part: &'static str,
        /// The kernel version and configuration that has it.
        fix: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Port forwarding could not be set up.
    #[error("{verb} for port forwarding")]
    Forward {
        /// What failed.
        verb: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Classified for NetnsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Own => Kind::InvalidArgument,
            Self::Enter { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Kind::InvalidArgument
            }
            Self::Kernel { .. } => Kind::FailedPrecondition,
            Self::Enter { source, .. } | Self::Forward { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                _ => Kind::Internal,
            },
        }
    }
}
