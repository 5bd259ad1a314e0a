//! Errors of a sandbox and its containers.

use std::io;
use std::path::PathBuf;

use runsc::{CallError, UrpcError};
use sandbox_core::stdio::StdioError;
use sandbox_core::{BundleError, Classified, Kind};
use sandbox_host::cgroup::CgroupError;
use sandbox_host::cleanup::StillRunning;
use sandbox_host::record::RecordError;
use sandbox_host::{HostError, MountError};

use crate::netns::AddressError;

/// A fault of the gVisor backend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GvisorError {
    #[error("rootfs {path} is not a directory; the bundle needs one to run from")]
    Rootfs { path: PathBuf },
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Control(#[from] UrpcError),
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
    Network(#[from] AddressError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    StillRunning(#[from] StillRunning),
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("container {0} is already known to runsc; delete it first")]
    Exists(String),
    #[error(
        "a gVisor sandbox starts with its first container; containerd's sandbox service is not \
         served yet"
    )]
    NoFirst,
    #[error("sandbox {0} has exited")]
    SandboxExited(String),
    #[error("sandbox {0} is paused, and with it all its containers; resume it first")]
    Paused(String),
    #[error("process {pid} of sandbox {sandbox} did not exit within {seconds} s of SIGKILL")]
    SandboxStays { sandbox: String, pid: u32, seconds: u64 },
    #[error("sandbox {sandbox} (process {pid}) exited while it was created")]
    ExitedEarly { sandbox: String, pid: u32 },
    #[error(
        "the Pod uses the host's network, which gVisor's own network stack cannot join; set \
         allow_host_network = true in the handler's file to let such a Pod use the host's stack"
    )]
    HostNetwork,
    #[error("{what}: process already finished")]
    Finished { what: String },
    #[error("process.args is empty; there is nothing to run")]
    NoArgs,
    #[error("process.cwd {0:?} is not an absolute path")]
    Cwd(String),
    #[error(
        "container {id} shares a sandbox with others, and gVisor can only save a sandbox as a \
         whole; checkpoint sandbox {sandbox}"
    )]
    PartialCheckpoint { id: String, sandbox: String },
}

impl Classified for GvisorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Call(error) => error.kind(),
            Self::Control(error) => error.kind(),
            Self::Host(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Stdio(error) => error.kind(),
            Self::Bundle(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::StillRunning(error) => error.kind(),
            Self::File { .. } => Kind::Internal,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::ExitedEarly { .. } => Kind::Unavailable,
            Self::SandboxStays { .. } => Kind::DeadlineExceeded,
            Self::Finished { .. } => Kind::NotFound,
            Self::HostNetwork | Self::NoArgs | Self::Cwd(_) | Self::Rootfs { .. } => {
                Kind::InvalidArgument
            }
            Self::NoFirst | Self::PartialCheckpoint { .. } => Kind::Unimplemented,
            Self::SandboxExited(_) | Self::Paused(_) => Kind::FailedPrecondition,
        }
    }
}
