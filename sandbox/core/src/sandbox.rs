//! The traits a backend implements. Each has a product and a fake, and one contract suite runs
//! on all of them.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_host::{Exit, Result, Stats};

use crate::process::Prepared;
use crate::request::{CreateContainer, ExecProcess, LaunchSandbox, Resources};

/// Launches sandboxes of one kind.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// Launches a sandbox, with its first container where the request brings one.
    ///
    /// Returns a sandbox that runs. When it fails, no process, mount or record of the sandbox or
    /// its first container is left.
    async fn launch(&self, request: LaunchSandbox) -> Result<Launched>;

    /// Removes what a container of this backend left behind, knowing its bundle and id alone: the
    /// shim that made it may be gone. Idempotent; runs every step even if one fails.
    async fn purge(&self, id: &crate::Id, bundle: &Path) -> Result<()>;
}

/// A sandbox that runs.
#[derive(Debug)]
pub struct Launched {
    /// The sandbox.
    pub sandbox: Arc<dyn Sandbox>,
    /// Its first container, if the request brought one.
    pub first: Option<Created>,
}

/// A container that was made and whose first process was not started.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub container: Arc<dyn Container>,
    /// Its first process.
    pub init: Box<dyn Prepared>,
}

/// A Pod's sandbox. It runs until it is stopped or its own process exits.
#[async_trait]
pub trait Sandbox: Debug + Send + Sync {
    /// Makes a container in the sandbox. When it fails, nothing of the container is left, and the
    /// sandbox runs on.
    async fn create(&self, request: CreateContainer) -> Result<Created>;

    /// Kills everything in the sandbox and releases what the sandbox itself holds. What its
    /// containers hold is released by [`Container::delete`]. Idempotent.
    async fn stop(&self) -> Result<()>;

    /// Resolves when the sandbox's own process has exited, at once if it already has.
    async fn exited(&self) -> Exit;
}

/// A container.
#[async_trait]
pub trait Container: Debug + Send + Sync {
    /// The host's process that stands for its processes: their own where the host sees them, else
    /// the sandbox's.
    fn pid(&self) -> u32;

    /// Prepares another process. Its container runs; what is wrong with the request is refused
    /// here rather than when the process is started.
    async fn exec(&self, request: ExecProcess) -> Result<Box<dyn Prepared>>;

    /// Changes its limits.
    async fn update(&self, resources: &Resources) -> Result<()>;

    /// What it uses now.
    async fn stats(&self) -> Result<Stats>;

    /// Freezes its processes.
    async fn pause(&self) -> Result<()>;

    /// Thaws its processes.
    async fn resume(&self) -> Result<()>;

    /// Writes its state to `image`, a directory; with `exit` it exits afterwards.
    async fn checkpoint(&self, image: PathBuf, exit: bool) -> Result<()>;

    /// Releases what the container holds: runtime state, mounts, cgroup. Its first process has
    /// exited. The container that the sandbox was launched with takes the sandbox along.
    /// Idempotent.
    async fn delete(&self) -> Result<()>;
}
