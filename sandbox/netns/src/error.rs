//! Why a Pod's network namespace could not be worked in.

use std::io;
use std::path::PathBuf;

use sandbox_core::{Classified, Kind};

/// What went wrong in a Pod's network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It is this process's own, or none.
    #[error("the Pod has no network namespace of its own")]
    Own,
    /// It cannot be entered.
    #[error("entering network namespace {path}")]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel lacks a part.
    #[error("the host's kernel has no {part}, for which it needs {mend}")]
    Kernel {
        /// What it lacks.
        part: &'static str,
        /// What brings it.
        mend: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Port forwarding could not be set up.
    #[error("{verb} for port forwarding")]
    Forward {
        /// What was tried.
        verb: &'static str,
        /// Why.
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
