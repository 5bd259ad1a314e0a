//! What every sandbox backend shares: validated ids, the requests that reach a sandbox, the
//! traits a backend implements, exits, errors with their gRPC kind, and [`host`], the one door
//! through which processes are started and file systems mounted.
//!
//! Nothing here knows protobuf, containerd's wire or a particular backend.

pub mod bundle;
pub mod cgroup;
pub mod cleanup;
pub mod contract;
pub mod error;
pub mod exit;
pub mod fake;
pub mod host;
pub mod id;
pub mod mounts;
pub mod record;
pub mod request;
pub mod sandbox;
pub mod secret;
pub mod settings;
pub mod stats;
pub mod stdio;

pub use bundle::{Bundle, BundleError};
pub use error::{Classified, Error, Kind, Result};
pub use exit::Exit;
pub use id::Id;
pub use request::{CreateContainer, ExecProcess, Resources, Role, RootfsMount, StdioPaths};
pub use sandbox::{Backend, Container, Process, ProcessInfo, Sandbox};
pub use secret::Secret;
pub use settings::{Fault, Faults};
pub use stats::{Interface, Stats};
