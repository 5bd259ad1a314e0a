//! What stands around a case: a private containerd with its packages, images and network.

pub mod apt;
pub mod cni;
mod config;
pub mod containerd;
pub mod gomod;
pub mod handler;
pub mod image;
pub mod kernel;
pub mod nested;
pub mod packages;
pub mod place;
pub mod process;
pub mod registry;
pub mod sweep;
pub mod traces;
pub mod vm;
