//! Why a Pod did not start.

use sandbox_host::cgroup::CgroupError;

use crate::convert::ConvertError;
use crate::cri::CriError;
use crate::directory::DirectoryError;
use crate::images::ImageError;
use crate::logs::LogError;
use crate::node_error::NodeError;
use crate::volumes::{SubPathError, VolumeError};
use crate::wait::WaitError;

/// Why a Pod did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// An image is not available.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A volume could not be created.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The Pod's directory could not be created.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file of the node could not be read or written.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The Pod's cgroup could not be created.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A log could not be followed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An init container's exit could not be awaited.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The sandbox did not start with its handler.
    #[error("runtime handler {handler:?}")]
    Handler {
        /// The handler.
        handler: String,
        /// The failed call.
        source: CriError,
    },
    /// A container cannot be described to the runtime.
    #[error("{document}")]
    Convert {
        /// The Pod's document.
        document: String,
        /// The reason.
        source: ConvertError,
    },
    /// A part of a volume cannot be mounted.
    #[error("{mount}")]
    SubPath {
        /// The mount's document and path.
        mount: String,
        /// The reason.
        source: SubPathError,
    },
}
