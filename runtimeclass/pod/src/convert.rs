//! From a checked Pod to CRI's messages, filled as the kubelet fills them. Nothing here touches the node.

mod container;
mod dns;
mod env;
mod expand;
mod hosts;
mod input;
mod resources;
mod sandbox;
mod security;
#[cfg(test)]
mod tests;

pub(crate) use container::{container_config, sub_path, volume_mount};
pub(crate) use hosts::hosts_file;
pub(crate) use input::{ContainerFacts, ImageFacts, Source};
pub use input::{ConvertError, Placement};
pub(crate) use resources::pod_limits;
pub(crate) use sandbox::sandbox_config;
