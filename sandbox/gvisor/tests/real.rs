#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
//! The backend on a real runsc: `BULKHEAD_RUNSC` or the one in `PATH`. Without one, or without
//! root, every test says that it is skipped and why.

#[path = "real/bed.rs"]
mod bed;
#[path = "real/exec.rs"]
mod exec;
#[path = "real/faults.rs"]
mod faults;
#[path = "real/lifecycle.rs"]
mod lifecycle;
#[path = "real/network.rs"]
mod network;
#[path = "real/state.rs"]
mod state;
