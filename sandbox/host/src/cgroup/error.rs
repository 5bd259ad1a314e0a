//! Operations on a group that failed.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Classified, Kind};

/// A cgroup that could not be created, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not a cgroup path.
    #[error("cgroup path {path:?} is not allowed: {reason}")]
    Path {
        /// `linux.cgroupsPath` as given.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// An operation on a file or directory of it failed.
    #[error("{verb} {path}")]
    Io {
        /// `creating`, `writing VALUE to`, `reading` or `removing`.
        verb: String,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl CgroupError {
    pub(super) fn io(verb: impl Into<String>, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let verb = verb.into();
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

impl Classified for CgroupError {
    fn kind(&self) -> Kind {
        match self {
            Self::Path { .. } => Kind::InvalidArgument,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                io::ErrorKind::InvalidInput => Kind::InvalidArgument,
                _ => Kind::Internal,
            },
        }
    }
}
