#![forbid(unsafe_code)]
//! The gVisor backend: Pods in a `runsc` sandbox.

mod argv;
mod capability;
pub mod config;
mod control;
mod limits;
mod message;
mod netns;
mod probe;
mod record;
mod runsc;
mod spec;
mod urpc;
mod usage;

pub use config::GvisorConfig;
