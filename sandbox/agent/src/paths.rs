//! Where the agent keeps what it has of each container.

use std::path::{Path, PathBuf};

use agent_api::GUEST_ROOT;

/// libcontainer's root path: one state directory per container.
pub(crate) fn states() -> PathBuf {
    Path::new(GUEST_ROOT).join("states")
}

/// The directory of the container `id`: its bundle, its overlay and its execs.
pub(crate) fn container_dir(id: &str) -> PathBuf {
    Path::new(GUEST_ROOT).join("containers").join(id)
}
