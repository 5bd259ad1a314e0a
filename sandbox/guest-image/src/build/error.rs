//! Why an image cannot be made.

use std::io;

use super::{AgentError, DebError, FetchError, KernelError, ModuleError, PublishError};
use crate::GuestError;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The agent cannot be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The package could not be had.
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
    /// What was written does not read back.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The files cannot be made.
    #[error("cannot pack the image")]
    Pack(#[source] io::Error),
    /// The caller broke off.
    #[error("stopped before the image was made")]
    Stopped,
}
