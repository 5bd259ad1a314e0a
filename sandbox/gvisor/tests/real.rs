#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
//! The backend on a real runsc, which `BULKHEAD_RUNSC` names, as root.

#[path = "real/bed.rs"]
mod bed;
#[path = "real/contract.rs"]
mod contract;
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
