//! Errors of building an image.

use std::io;

use super::agent::AgentError;
use super::deb::DebError;
use super::fetch::FetchError;
use super::kernel::KernelError;
use super::modules::ModuleError;
use super::publish::PublishError;
use crate::error::GuestError;

/// An error of building an image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The agent cannot be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The package could not be downloaded.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The package cannot be used.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The modules cannot be used.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The image could not be put in place.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The written image fails its verification.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The files cannot be packed.
    #[error("cannot pack the image")]
    Pack(#[source] io::Error),
    /// The caller stopped the build.
    #[error("stopped before the image was built")]
    Stopped,
}
