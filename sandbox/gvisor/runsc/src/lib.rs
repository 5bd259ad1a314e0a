//! gVisor's `runsc` and the sandboxes it makes, as a client sees them: command lines, error texts,
//! the files and processes that belong to a container, the sandbox's control server, and what the
//! installed build can do.
//!
//! Nothing here decides when a container is created, started or removed.

#![forbid(unsafe_code)]

mod argv;
mod call;
mod capability;
mod control;
mod event;
mod id;
mod message;
mod probe;
mod settings;
mod state;
mod strays;
mod urpc;

pub use argv::OWN_FLAGS;
pub use call::{CallError, Runsc};
pub use capability::Capabilities;
pub use control::{Control, ExecArgs, Target};
pub use event::{Event, GuestInterface};
pub use id::RunscId;
pub use message::RunscError;
pub use probe::ProbeError;
pub use settings::{FileAccess, HostUds, Network, Platform, Settings, Timeouts};
pub use state::{StateFiles, pid_file, remove_filestore, remove_pid_file};
pub use strays::strays;
pub use urpc::UrpcError;
