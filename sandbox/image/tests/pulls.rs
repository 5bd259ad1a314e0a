#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
//! Pulls from registries: one made here that does whatever a test wants, and Debian's
//! `docker-registry`, which `BULKHEAD_REGISTRY` names when the tests are built and run. Without
//! one its tests are ignored and say why.

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
