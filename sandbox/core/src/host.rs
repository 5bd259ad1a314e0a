//! Effects on the host: processes and their exits, mounts, loop devices.
//!
//! Nothing else in the workspace starts a process or mounts a file system, so that what a backend
//! does to the host can be read, faked and bounded in one place.

mod bind;
mod command;
mod confine;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod loopback;
mod mount;
mod namespace;
mod owned;
mod privileges;
mod process_ref;
mod real;
mod reaper;
mod spawn;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use bind::{Bind, Propagation, ReadOnly};
pub use command::{Command, Output, Resource, User};
pub use confine::{Paths, can_confine};
#[cfg(any(test, feature = "testing"))]
pub use fake::{FakeHost, Scripted};
pub use mount::MountError;
pub use owned::OwnedBind;
pub use process_ref::ProcessRef;
pub use real::RealHost;
pub use reaper::ExitWatch;

use crate::error::{Classified, Kind};
use crate::request::RootfsMount;

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

/// Resolves a command's program: a path, or a name looked up in the search path that commands
/// get. `None` when there is no such executable file.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    spawn::find(program)
}

/// Starts `command` without watching it, for a caller that exits at once.
///
/// # Errors
///
/// [`HostError::Spawn`] names the program.
pub fn spawn_detached(command: Command) -> Result<u32, HostError> {
    let program = command.program.display().to_string();
    let child = spawn::spawn(command).map_err(|source| HostError::Spawn { program, source })?;
    Ok(child.id())
}

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: u32,
    /// Resolves when it has exited.
    pub exit: ExitWatch,
}

/// An operation on processes or namespaces that failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The program did not exit in time and was killed.
    #[error("{command} did not exit within {seconds} s and was killed")]
    Deadline {
        /// Program and first argument that is not a flag.
        command: String,
        /// The deadline.
        seconds: u64,
    },
    /// A process to watch does not exist, and no exit of a child with its id was collected.
    #[error("process {0} does not exist and its exit status is unknown")]
    Gone(u32),
    /// Reading a program's output failed.
    #[error("reading the output of {program}")]
    Output {
        /// The program.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A mount namespace could not be created.
    #[error("creating a mount namespace for the Pod")]
    Namespace(#[source] std::io::Error),
    /// This process could not be made the reaper of its orphans.
    #[error("cannot become a child subreaper")]
    Subreaper(#[source] std::io::Error),
}

impl Classified for HostError {
    fn kind(&self) -> Kind {
        match self {
            Self::Spawn { .. } => Kind::Unavailable,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Gone(_) => Kind::NotFound,
            Self::Output { .. } | Self::Subreaper(_) | Self::Namespace(_) => Kind::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_by_path_and_by_name() {
        let shell = Some(PathBuf::from("/bin/sh"));
        assert_eq!(find_program(Path::new("/bin/sh")), shell);
        assert!(find_program(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program(Path::new("/etc/passwd")), None);
        assert_eq!(find_program(Path::new("/etc")), None);
        assert_eq!(find_program(Path::new("no-such-program")), None);
    }
}
