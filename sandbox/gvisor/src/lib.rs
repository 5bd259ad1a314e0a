#![forbid(unsafe_code)]
//! The gVisor backend: Pods in a `runsc` sandbox.
//!
//! `runsc` is called to create, start and checkpoint; everything else goes to the sandbox's own
//! control socket, so that no helper process lives beside a container. The shim must be a child
//! subreaper: the sandbox's exit status is read from its process.

mod backend;
mod config;
mod container;
mod create;
mod error;
mod exec;
mod forward;
mod group;
mod init;
mod limits;
mod netns;
mod paths;
mod pod;
mod process;
mod purge;
mod record;
mod runtime;
mod sandbox;
mod spec;
mod usage;

pub use backend::GvisorBackend;
pub use config::GvisorConfig;
pub use runsc::{FileAccess, HostUds, Network, Platform, Timeouts};
