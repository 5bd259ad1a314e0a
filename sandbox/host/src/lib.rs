//! Effects on the host: processes and their exits, mounts, control groups, state files; and what
//! all of it reports with, errors that know their gRPC code.
//!
//! Nothing else in the workspace starts a process or mounts a file system, so that what a backend
//! does to the host can be read, faked and bounded in one place. The feature `testing` adds the
//! fake.

mod bind;
pub mod cgroup;
pub mod cleanup;
mod command;
mod confine;
mod error;
mod exit;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod hooks;
mod host;
mod host_error;
mod loopback;
mod mount;
mod mount_error;
pub mod mounts;
mod namespace;
mod owned;
mod privileges;
mod process_ref;
mod real;
mod reaper;
pub mod record;
mod spawn;
mod stats;

pub use bind::{Bind, Propagation, ReadOnly};
pub use command::{Command, Output, Resource, User};
pub use confine::{Paths, can_confine};
pub use error::{Classified, Error, Kind, Result};
pub use exit::Exit;
#[cfg(any(test, feature = "testing"))]
pub use fake::{FakeHost, Scripted};
pub use hooks::{HookError, Hooks};
pub use host::Host;
pub use host_error::HostError;
pub use mount::RootfsMount;
pub use mount_error::MountError;
pub use owned::OwnedBind;
pub use process_ref::ProcessRef;
pub use real::RealHost;
pub use reaper::{Child, ExitWatch};
pub use spawn::{find_program, spawn_detached};
pub use stats::{Interface, Stats};
