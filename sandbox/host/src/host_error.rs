//! Operations on processes and namespaces that failed.

use crate::error::{Classified, Kind};

/// An operation on processes or namespaces that failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The program did not exit in time and was killed.
    #[error("{command} did not exit within {seconds} s and was killed")]
    Deadline {
        /// Program and first argument that is not a flag.
        command: String,
        /// The deadline.
        seconds: u64,
    },
    /// A process to watch does not exist, and no exit of a child with its id was collected.
    #[error("process {0} does not exist and its exit status is unknown")]
    Gone(u32),
    /// Reading a program's output failed.
    #[error("reading the output of {program}")]
    Output {
        /// The program.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A mount namespace could not be created.
    #[error("creating a mount namespace for the Pod")]
    Namespace(#[source] std::io::Error),
    /// This process could not be made the reaper of its orphans.
    #[error("cannot become a child subreaper")]
    Subreaper(#[source] std::io::Error),
}

impl Classified for HostError {
    fn kind(&self) -> Kind {
        match self {
            Self::Spawn { .. } => Kind::Unavailable,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Gone(_) => Kind::NotFound,
            Self::Output { .. } | Self::Subreaper(_) | Self::Namespace(_) => Kind::Internal,
        }
    }
}
