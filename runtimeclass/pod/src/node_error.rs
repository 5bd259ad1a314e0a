//! Errors of the node's files, mounts and cgroups.

use std::io;
use std::path::{Path, PathBuf};

/// Why the node could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct NodeError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl NodeError {
    /// For use with `map_err`: the verb and the path that it failed on.
    pub(crate) fn at<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self { what, path, source: source.into() }
    }
}
