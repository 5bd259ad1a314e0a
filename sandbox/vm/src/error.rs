//! Errors of VMs and their containers.

use std::io;
use std::path::PathBuf;

use sandbox_core::stdio::StdioError;
use sandbox_core::{BundleError, Classified, Error, Kind};
use sandbox_host::cleanup::StillRunning;
use sandbox_host::record::RecordError;
use sandbox_host::{HookError, HostError, MountError};

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
    Hook(#[from] HookError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    StillRunning(#[from] StillRunning),
    /// A part of this backend with an error type of its own.
    #[error("{0}")]
    Part(Error),
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("the VM of sandbox {0} has exited")]
    Exited(String),
    #[error("the VM exited while its guest booted{0}")]
    NotBooted(String),
    #[error("the guest's agent did not connect within {seconds} s of the VM's start{console}")]
    NotConnected { seconds: u64, console: String },
    #[error("the VM of sandbox {sandbox} did not stop within {seconds} s")]
    NotStopped { sandbox: String, seconds: u64 },
    #[error("{what} has already exited")]
    ProcessExited { what: String },
    #[error("process.args is empty; there is nothing to run")]
    NoArgs,
    #[error("a VM cannot be saved and restored; checkpoint and restore need gVisor")]
    NoCheckpoint,
    #[error("{what} as JSON")]
    Json { what: &'static str, source: serde_json::Error },
}

impl VmError {
    /// A failed step on the file `path`.
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
            Self::Hook(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::StillRunning(error) => error.kind(),
            Self::Part(error) => error.kind(),
            Self::File { .. } | Self::Json { .. } => Kind::Internal,
            Self::Exited(_) => Kind::FailedPrecondition,
            Self::NotBooted(_) => Kind::Unavailable,
            Self::NotConnected { .. } | Self::NotStopped { .. } => Kind::DeadlineExceeded,
            Self::ProcessExited { .. } => Kind::NotFound,
            Self::NoArgs => Kind::InvalidArgument,
            Self::NoCheckpoint => Kind::Unimplemented,
        }
    }
}
