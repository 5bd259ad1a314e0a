//! The environment of cases: a private containerd with its packages, images and network.

pub(crate) mod apt;
pub(crate) mod cni;
mod config;
pub(crate) mod containerd;
pub(crate) mod fault;
pub(crate) mod gomod;
pub(crate) mod handler;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod nested;
pub(crate) mod packages;
pub(crate) mod place;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod sweep;
pub(crate) mod traces;
pub(crate) mod version;
pub(crate) mod vm;
