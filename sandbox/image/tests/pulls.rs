#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
//! Pulls from registries: a scripted server, and Debian's `docker-registry` if `BULKHEAD_REGISTRY`
//! is set to its path.

#[path = "pulls/bed.rs"]
mod bed;
#[path = "pulls/credentials.rs"]
mod credentials;
#[path = "pulls/daemon.rs"]
mod daemon;
#[path = "pulls/faults.rs"]
mod faults;
#[path = "pulls/forms.rs"]
mod forms;
#[path = "pulls/hosts.rs"]
mod hosts;
#[path = "pulls/image.rs"]
mod image;
#[path = "pulls/leaks.rs"]
mod leaks;
#[path = "pulls/memory.rs"]
mod memory;
#[path = "pulls/pki.rs"]
mod pki;
#[path = "pulls/real.rs"]
mod real;
#[path = "pulls/server.rs"]
mod server;
#[path = "pulls/tokens.rs"]
mod tokens;
