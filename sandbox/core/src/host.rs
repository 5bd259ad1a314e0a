//! The one door to the host: processes, mounts, and the exits of everything that was started.
//!
//! Nothing else in the workspace starts a process or mounts a file system, so that what a
//! backend does to the host can be read, faked and bounded in one place.

mod bind;
mod command;
mod confine;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod lend;
mod loopback;
mod mark;
mod mount;
mod namespace;
mod privileges;
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
pub use lend::Loan;
pub use mark::ProcessMark;
pub use mount::MountError;
pub use real::RealHost;
pub use reaper::ExitWatch;

use crate::error::{Classified, Kind};
use crate::request::RootfsMount;

/// What a backend may do to the host.
#[async_trait]
pub trait Host: Debug + Send + Sync {
    /// Runs `command` to its end, with its output captured (each stream's last 64 KiB) unless
    /// the command says where it goes. After `deadline` it is killed.
    async fn run(&self, command: Command, deadline: Duration) -> Result<Output, HostError>;

    /// Starts `command`. It is killed when this process dies, if the command says so; nobody
    /// kills it when the answer is dropped.
    fn spawn(&self, command: Command) -> Result<Child, HostError>;

    /// Watches a process that was, or is about to be, reparented to this one.
    fn watch(&self, pid: u32) -> Result<ExitWatch, HostError>;

    /// Mounts `mount` on the existing directory `target`.
    fn mount(&self, mount: &RootfsMount, target: &Path) -> Result<(), MountError>;

    /// Binds `source` on the existing `target` of the same sort, a directory or not. Needs
    /// Linux 5.12.
    fn bind(&self, source: &Path, target: &Path, how: Bind) -> Result<(), MountError>;

    /// Puts the device or the file `source` on the existing file `target`, where it is `to`'s owner's.
    /// [`Host::unmount_all`] takes it back.
    fn lend(&self, source: &Path, target: &Path, to: Loan) -> Result<(), MountError>;

    /// Unmounts everything at and below `target`; fine when nothing is mounted there.
    fn unmount_all(&self, target: &Path) -> Result<(), MountError>;

    /// A host whose mounts nobody else sees: what it mounts is in a mount namespace of its own,
    /// and so are the programs that it starts. They find there the host's root file system,
    /// `/proc`, the mounts of the host on which the paths `keep` lie, and what is mounted by it;
    /// sources are taken from where this process is. The namespace goes, with all that is mounted
    /// in it, when the host is dropped and the programs have ended.
    fn apart(&self, keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError>;
}

/// The file that a command's program names: a path, or a name looked up in the search path that
/// commands get. `None` when there is no such executable file.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    spawn::find(program)
}

/// Starts `command` without watching it, for a caller that ends at once.
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
    /// Its end.
    pub exit: ExitWatch,
}

/// What the host refused.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The program did not end in time and was killed.
    #[error("{command} did not end within {seconds} s and was killed")]
    Deadline {
        /// Program and first argument that is no flag.
        command: String,
        /// The bound that ran out.
        seconds: u64,
    },
    /// A process to watch is neither ours nor known to have ended.
    #[error("process {0} is gone and its exit was not seen")]
    Gone(u32),
    /// Reading a program's output failed.
    #[error("reading the output of {program}")]
    Output {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// No mount namespace could be made.
    #[error("making a mount namespace for the Pod")]
    Apart(#[source] std::io::Error),
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
            Self::Output { .. } | Self::Subreaper(_) | Self::Apart(_) => Kind::Internal,
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
