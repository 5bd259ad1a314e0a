//! The hands of a case.

pub mod cri;
pub mod forward;
pub mod netns;
pub mod pod;
pub mod shim;
pub mod stage;
pub mod task;
pub mod terminal;
