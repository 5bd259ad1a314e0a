//! The hands of a case.

pub(crate) mod cri;
pub(crate) mod forward;
pub(crate) mod netns;
pub(crate) mod pod;
pub(crate) mod shim;
pub(crate) mod stage;
pub(crate) mod task;
pub(crate) mod terminal;
