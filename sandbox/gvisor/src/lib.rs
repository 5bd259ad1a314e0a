#![forbid(unsafe_code)]
//! The gVisor backend: Pods in a `runsc` sandbox.

mod argv;
pub mod config;
mod control;
mod message;
mod spec;
mod urpc;

pub use config::GvisorConfig;
