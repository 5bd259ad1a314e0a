//! From the runtime options that containerd passes to a checked [`Handler`], and from there
//! to the backend that runs the Pod.
//!
//! A handler is one entry `[...containerd.runtimes.NAME]` of containerd's configuration, and what
//! a RuntimeClass names. containerd does not pass that name to the shim, only the runtime options:
//! a path (`ConfigPath`) or an inline table. All faults in them are reported at once.

#![forbid(unsafe_code)]

mod config;
mod dispatch;
mod fault;

pub use config::{ConfigSource, DEFAULT_CONFIG, Handler};
pub use dispatch::{backend, features, program};
pub use fault::ConfigError;
