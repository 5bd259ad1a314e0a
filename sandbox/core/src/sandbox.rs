//! The traits a backend implements. Each has a product and a fake, and one contract suite runs
//! on all of them.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::exit::Exit;
use crate::request::{CreateContainer, ExecProcess, Resources};
use crate::stats::Stats;

/// One wall: makes sandboxes of its kind.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// A new, still empty sandbox. No process runs before its first container is created.
    async fn open(&self) -> Result<Arc<dyn Sandbox>>;

    /// Removes whatever a container of this backend left, knowing its bundle and id alone: the
    /// shim that made it may be gone. Idempotent; runs every step even if one fails.
    async fn purge(&self, id: &crate::Id, bundle: &Path) -> Result<()>;
}

/// A Pod's sandbox.
#[async_trait]
pub trait Sandbox: Debug + Send + Sync {
    /// Makes a container in the sandbox; the first one starts the sandbox itself. When it
    /// fails, nothing of the container (and, for the first, of the sandbox) is left.
    async fn create(&self, request: CreateContainer) -> Result<Arc<dyn Container>>;

    /// Kills everything in the sandbox and releases what it holds. Idempotent.
    async fn stop(&self) -> Result<()>;

    /// Resolves when the sandbox's own process has ended, at once if it already has.
    async fn exited(&self) -> Exit;
}

/// A container.
#[async_trait]
pub trait Container: Debug + Send + Sync {
    /// Its first process.
    fn init(&self) -> Arc<dyn Process>;

    /// Prepares another process; [`Process::start`] runs it.
    async fn exec(&self, request: ExecProcess) -> Result<Arc<dyn Process>>;

    /// Changes its limits.
    async fn update(&self, resources: &Resources) -> Result<()>;

    /// What it uses now.
    async fn stats(&self) -> Result<Stats>;

    /// Freezes its processes.
    async fn pause(&self) -> Result<()>;

    /// Thaws its processes.
    async fn resume(&self) -> Result<()>;

    /// Its processes.
    async fn pids(&self) -> Result<Vec<ProcessInfo>>;

    /// Writes its state to `image`, a directory; with `exit` it ends afterwards.
    async fn checkpoint(&self, image: PathBuf, exit: bool) -> Result<()>;

    /// Releases what the ended container holds: runtime state, mounts, cgroup. Idempotent.
    async fn delete(&self) -> Result<()>;

    /// Whether the kernel's out-of-memory killer ended it (or the sandbox around it).
    async fn oom_killed(&self) -> bool;
}

/// A process of a container: its first one or an exec.
#[async_trait]
pub trait Process: Debug + Send + Sync {
    /// The host's process id that stands for it: its own where the host sees it, else that of
    /// the sandbox around it.
    fn pid(&self) -> u32;

    /// Runs it. Only once.
    async fn start(&self) -> Result<()>;

    /// Sends `signal` to it, or to every process of its container with `all`.
    async fn signal(&self, signal: i32, all: bool) -> Result<()>;

    /// Resolves when it has ended and its output has been handed over, at once if it already has.
    /// Any number of callers.
    async fn wait(&self) -> Exit;

    /// Sets its terminal's size in character cells.
    async fn resize(&self, width: u16, height: u16) -> Result<()>;

    /// Lets it read end-of-file.
    async fn close_stdin(&self) -> Result<()>;
}

/// A process as `Pids` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Process id; inside the sandbox where the host does not see the process.
    pub pid: u32,
    /// The exec it was started by, if any.
    pub exec_id: Option<String>,
}
