//! The test bed: real containerds from Debian's packages, private to a run, and the cases that are
//! played on them.
//!
//! * `bed`: packages, images, containerd, CNI, and the search for leaked processes, mounts and files.
//! * `client`: what cases act by: CRI, `ctr`, terminals, the shim's own ttrpc socket.
//! * `cases`: what must be true, one function per case, the same for every handler.
//! * `bench`: how fast and how small Pods are, handlers side by side.
//! * `critest`: the conformance suite of CRI, and which of its specs are known not to pass.
//! * `plan`: which cases are played where.
//! * `relay`: cases in nested VMs that may crash.
//! * `runner`: plays cases, each under a deadline, and counts.
#![forbid(unsafe_code)]

mod args;
mod bed;
mod bench;
mod cases;
mod client;
mod commands;
mod critest;
mod plan;
mod relay;
mod runner;

pub use self::commands::main;
