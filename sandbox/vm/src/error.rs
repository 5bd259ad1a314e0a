//! What can go wrong with a machine and its containers.

use std::io;
use std::path::PathBuf;

use sandbox_core::bundle::BundleError;
use sandbox_core::cleanup::StillRunning;
use sandbox_core::host::{HostError, MountError};
use sandbox_core::record::RecordError;
use sandbox_core::stdio::StdioError;
use sandbox_core::{Classified, Error, Kind};

use crate::guest::GuestError;

/// A fault of the VM backend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Immortal(#[from] StillRunning),
    /// A part of this backend with an error type of its own, told as it tells itself.
    #[error("{0}")]
    Part(Error),
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("container {id} belongs to sandbox {sandbox}, which does not run here")]
    NoSandbox { id: String, sandbox: String },
    #[error("sandbox {0} has already been made")]
    SandboxExists(String),
    #[error("the machine of sandbox {0} has ended")]
    Ended(String),
    #[error("the machine ended while its guest booted{0}")]
    Stillborn(String),
    #[error("the guest's agent did not report within {seconds} s of the machine's start{console}")]
    Silent { seconds: u64, console: String },
    #[error("the machine of sandbox {sandbox} did not end within {seconds} s")]
    StillThere { sandbox: String, seconds: u64 },
    #[error("{what} has not been started")]
    NotStarted { what: String },
    #[error("{what} was already started")]
    Started { what: String },
    #[error("{what} has already ended")]
    ProcessEnded { what: String },
    #[error("container {0} still runs; kill it first")]
    Running(String),
    #[error("process.args is empty; there is nothing to run")]
    NoArgs,
    #[error("a machine cannot be saved and restored here; checkpoint and restore need gVisor")]
    NoCheckpoint,
    #[error("{what} as JSON")]
    Json { what: &'static str, source: serde_json::Error },
}

impl VmError {
    /// As a step on a file.
    pub(crate) fn file(
        step: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { step, path, source }
    }
}

impl From<Error> for VmError {
    fn from(error: Error) -> Self {
        Self::Part(error)
    }
}

impl Classified for VmError {
    fn kind(&self) -> Kind {
        match self {
            Self::Guest(error) => error.kind(),
            Self::Host(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Stdio(error) => error.kind(),
            Self::Bundle(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Immortal(error) => error.kind(),
            Self::Part(error) => error.kind(),
            Self::File { .. } | Self::Json { .. } => Kind::Internal,
            Self::SandboxExists(_) => Kind::AlreadyExists,
            Self::Stillborn(_) => Kind::Unavailable,
            Self::Silent { .. } | Self::StillThere { .. } => Kind::DeadlineExceeded,
            Self::ProcessEnded { .. } => Kind::NotFound,
            Self::NoArgs => Kind::InvalidArgument,
            Self::NoCheckpoint => Kind::Unimplemented,
            Self::NoSandbox { .. }
            | Self::Ended(_)
            | Self::NotStarted { .. }
            | Self::Started { .. }
            | Self::Running(_) => Kind::FailedPrecondition,
        }
    }
}
