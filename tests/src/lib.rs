//! The test bed: real containerds from Debian's packages, private to this run, and the cases that
//! are played on them.
//!
//! * [`bed`]: packages, images, containerd, CNI, traces: everything that is set up and taken down.
//! * [`client`]: the hands of a case: CRI, `ctr`, terminals, the shim's own ttrpc socket.
//! * [`cases`]: what must be true, one function per case, the same for every handler.
//! * [`mod@bench`]: how fast and how small, handlers side by side.
//! * [`mod@critest`]: the suite that others judge runtimes by, and which of its specs do not pass.
//! * [`plan`]: which cases are played where.
//! * [`relay`]: cases in nested machines that do not last.
//! * [`runner`]: plays cases, each under a deadline, counts.
#![forbid(unsafe_code)]

pub mod bed;
pub mod bench;
pub mod cases;
pub mod client;
pub mod critest;
pub mod plan;
pub mod relay;
pub mod runner;
