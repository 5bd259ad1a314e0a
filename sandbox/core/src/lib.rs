//! What every sandbox backend shares: validated ids, the requests that reach a sandbox, the
//! traits a backend implements, the life of a process, exits, errors with their gRPC kind, and
//! [`host`], through which all processes are started and all file systems mounted.
//!
//! Nothing here knows protobuf, containerd's wire or a particular backend. The feature `testing`
//! adds what backends and the shim are tested with.

pub mod bundle;
pub mod cgroup;
pub mod cleanup;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
pub mod error;
pub mod exit;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod host;
pub mod id;
pub mod mounts;
mod process;
pub mod record;
pub mod request;
pub mod sandbox;
pub mod secret;
pub mod settings;
pub mod stats;
pub mod stdio;

pub use bundle::{Bundle, BundleError};
pub use error::{Classified, Error, Kind, Result};
pub use exit::{Ended, Exit};
pub use id::Id;
pub use process::{Early, Killer, Phase, Prepared, Process, Running, TerminalSize};
pub use request::{
    CreateContainer, ExecProcess, First, LaunchSandbox, NetworkNamespace, Resources, RootfsMount,
    StdioPaths,
};
pub use sandbox::{Backend, Container, Created, Launched, ProcessInfo, Sandbox};
pub use secret::Secret;
pub use settings::{Fault, Faults};
pub use stats::{Interface, Stats};
