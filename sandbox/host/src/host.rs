//! The trait through which a backend acts on the host.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::bind::Bind;
use crate::command::{Command, Output};
use crate::host_error::HostError;
use crate::mount::RootfsMount;
use crate::mount_error::MountError;
use crate::owned::OwnedBind;
use crate::reaper::{Child, ExitWatch};

/// What a backend may do to the host.
#[async_trait]
pub trait Host: Debug + Send + Sync {
    /// Runs `command` until it exits, and captures each stream that the command does not redirect
    /// (the last 64 KiB). Kills it after `deadline`.
    async fn run(&self, command: Command, deadline: Duration) -> Result<Output, HostError>;

    /// Starts `command`. Dropping the returned value does not kill it; the death of this process
    /// does, unless [`Command::outlives_parent`] is set.
    fn spawn(&self, command: Command) -> Result<Child, HostError>;

    /// Watches a process that was, or is about to be, reparented to this one.
    fn watch(&self, pid: u32) -> Result<ExitWatch, HostError>;

    /// Mounts `mount` on the existing directory `target`.
    fn mount(&self, mount: &RootfsMount, target: &Path) -> Result<(), MountError>;

    /// Binds `source` on the existing `target` of the same sort, a directory or not. Needs
    /// Linux 5.12.
    fn bind(&self, source: &Path, target: &Path, how: Bind) -> Result<(), MountError>;

    /// Mounts the block device or file `source` on the existing file `target`, where another user
    /// owns it. The source keeps its owner.
    fn bind_owned(&self, source: &Path, target: &Path, how: OwnedBind) -> Result<(), MountError>;

    /// Unmounts everything at and below `target`; fine when nothing is mounted there.
    fn unmount_all(&self, target: &Path) -> Result<(), MountError>;

    /// Returns a host with a mount namespace of its own, in which it mounts and starts programs.
    /// The namespace has the root file system, `/proc`, and the mounts on which the paths `keep`
    /// lie; sources of mounts are looked up in this process's namespace. The kernel removes it with
    /// all its mounts once the returned host is dropped and the programs have exited.
    fn with_private_mounts(&self, keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError>;
}
