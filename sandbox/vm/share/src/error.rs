//! Why a directory cannot be shared.

use std::io;
use std::path::{Path, PathBuf};

use sandbox_core::{Classified, Kind};
use sandbox_host::{HostError, MountError};

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No virtiofsd where it was looked for.
    #[error(
        "no virtiofsd at {0}; install it (Debian: virtiofsd) or set its path in the handler's file"
    )]
    Missing(String),
    /// The program is not a virtiofsd, or lacks a required option.
    #[error("{program} cannot serve a Pod: {reason}")]
    Unfit {
        /// The program.
        program: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// A file or directory of the share could not be created, read or removed.
    #[error("{doing} {path}")]
    Io {
        /// The failed step.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A process could not be started.
    #[error("starting virtiofsd")]
    Host(#[from] HostError),
    /// A mount or unmount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A source's file system does not answer.
    #[error(
        "mounting for container {container} took more than {seconds} s; is a volume's server gone?"
    )]
    Stalled {
        /// The container.
        container: String,
        /// The deadline that passed.
        seconds: u64,
    },
    /// A process did not exit after SIGKILL.
    #[error("virtiofsd (process {0}) did not exit after SIGKILL")]
    Survives(u32),
}

impl Classified for ShareError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing(_) => Kind::Unavailable,
            Self::Unfit { .. } => Kind::FailedPrecondition,
            Self::Io { .. } | Self::Survives(_) => Kind::Internal,
            Self::Host(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Stalled { .. } => Kind::DeadlineExceeded,
        }
    }
}

impl ShareError {
    /// The error of `doing` something at `path`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
