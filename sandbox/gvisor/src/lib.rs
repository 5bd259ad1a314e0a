#![forbid(unsafe_code)]
//! The gVisor backend: Pods in a `runsc` sandbox.
//!
//! `runsc` is called to create, start and checkpoint; everything else goes to the sandbox's own
//! control socket, so that no helper process lives beside a container. The shim must be a child
//! subreaper: the sandbox's exit status is read from its process.

mod argv;
mod backend;
mod capability;
mod config;
mod container;
mod control;
mod create;
mod error;
mod event;
mod exec;
mod execs;
mod forward;
mod group;
mod init;
mod limits;
mod message;
mod netns;
mod paths;
mod pod;
mod probe;
mod process;
mod purge;
mod record;
mod runsc;
mod runtime;
mod sandbox;
mod settings;
mod spec;
mod state;
mod strays;
mod urpc;
mod usage;

pub use backend::GvisorBackend;
pub use config::GvisorConfig;
pub use settings::{FileAccess, HostUds, Network, Platform, Timeouts};
