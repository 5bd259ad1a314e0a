//! What every sandbox backend shares: validated ids, the requests that reach a sandbox, the
//! traits a backend implements, the life of a process, its streams.
//!
//! Nothing here knows protobuf, containerd's wire or a particular backend. The feature `testing`
//! adds what backends and the shim are tested with.

pub mod annotation;
mod bundle;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod exit;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod id;
mod process;
mod request;
mod sandbox;
mod secret;
mod settings;
pub mod stdio;

pub use bundle::{Bundle, BundleError};
pub use exit::{Ended, ExitCell};
#[cfg(any(test, feature = "testing"))]
pub use fake::FakeBackend;
pub use id::{Id, IdError};
pub use process::{Early, Killer, Phase, Prepared, Process, Running, TerminalSize};
pub use request::{
    CreateContainer, ExecProcess, First, LaunchSandbox, NetworkNamespace, Resources, StdioPaths,
};
pub use sandbox::{Backend, Container, Created, Launched, Sandbox};
// The traits' own vocabulary.
pub use sandbox_host::{Classified, Error, Exit, Interface, Kind, Result, RootfsMount, Stats};
pub use secret::Secret;
pub use settings::{Fault, Faults};
