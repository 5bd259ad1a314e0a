//! Mounts and unmounts that failed.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Classified, Kind};

/// mount(2) takes one page of options, its final NUL included.
pub(crate) const OPTIONS_MAX: usize = 4095;

/// A mount or unmount that failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mount(2) failed.
    #[error("mounting {kind} {source_path} on {target}")]
    Mount {
        /// File system type.
        kind: String,
        /// Device or directory.
        source_path: String,
        /// The mount point.
        target: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// umount(2) failed.
    #[error("unmounting {target}")]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A device or file could not be prepared for a mount with another owner.
    #[error("mounting {source_path} with another owner")]
    Owned {
        /// The device or file.
        source_path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The options do not fit one page even with short paths.
    #[error("mount options for {target} take {length} bytes; the kernel takes {OPTIONS_MAX}")]
    TooLong {
        /// The mount point.
        target: PathBuf,
        /// Their length in bytes.
        length: usize,
    },
}

impl MountError {
    /// Replaces the mount point.
    pub(crate) fn at(mut self, point: &Path) -> Self {
        match &mut self {
            Self::Mount { target, .. }
            | Self::Unmount { target, .. }
            | Self::TooLong { target, .. } => point.clone_into(target),
            Self::Owned { .. } => {}
        }
        self
    }
}

impl Classified for MountError {
    fn kind(&self) -> Kind {
        match self {
            Self::Mount { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM | Errno::EACCES) => Kind::PermissionDenied,
                Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV | Errno::ENOTBLK) => {
                    Kind::InvalidArgument
                }
                _ => Kind::Internal,
            },
            Self::Owned { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Kind::InvalidArgument
            }
            Self::Unmount { .. } | Self::Owned { .. } => Kind::Internal,
            Self::TooLong { .. } => Kind::InvalidArgument,
        }
    }
}
