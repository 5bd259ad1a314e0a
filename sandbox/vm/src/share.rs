//! The Pod's shared directory and the virtiofsd that serves it to the guest.
//!
//! ```text
//! <dir>/backing/<container>/...    mount points; only this process writes here
//! <dir>/share/...                  the same directory, bound read-only: what virtiofsd serves
//! <dir>/share/<container>/rootfs   a container's root file system
//! <dir>/share/.volumes/<name>       a volume, the same for all containers that have it
//! <dir>/fs.sock, <dir>/virtiofsd.log
//! <dir>/disks/<id>                a disk that the machine's monitor may open
//! <dir>/vmm/...                   the monitor's own
//! ```
//!
//! * The guest is hostile, and virtiofsd lets it write wherever a mount lets it. Mount points are
//!   made below `backing`, which is not served, and what is served is read-only around the
//!   mounts: a guest cannot put a symbolic link where the host mounts next. Nothing is ever
//!   mounted below a container's root file system on the host.
//! * All mounts are made where the machine's [`Host`] makes them, in a mount namespace of its own
//!   ([`Host::apart`]): the host sees the mount points empty.
//! * `share` is a shared mount with a peer group of its own, so that mounts made later reach
//!   virtiofsd's mount namespace, which is another one again. Volumes are private or slave mounts:
//!   taking one down never takes a mount of the host with it.
//! * What is mounted read-only is read-only on the host: a guest's own flags bind nobody.
//! * virtiofsd announces submounts, so that files of two mounts with the same inode number are
//!   two files in the guest.
//! * virtiofsd runs in its own mount, pid and network namespace with its seccomp filter and the
//!   capabilities it keeps by itself. It dies with this process and is never restarted: the
//!   guest's open files would be lost.
//! * When a container is gone the guest still knows its directories until it looks at
//!   `<share>/<container>` again; a look there lets virtiofsd drop what it holds of them.

pub(crate) mod disks;
mod leftover;
mod program;
#[cfg(test)]
mod tests;
mod tree;
mod volumes;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sandbox_core::host::{ExitWatch, Host, HostError, MountError, ProcessMark};
use sandbox_core::{Classified, Exit, Kind};

use crate::driver::{BoundedLog, user};
pub use program::Virtiofsd;
pub(crate) use tree::VOLUMES;
pub use tree::{Shared, SharedMount, Tree};
pub use volumes::{Volume, Volumes};

/// How long a killed virtiofsd may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How much of what virtiofsd says goes to its log file.
const LOG_MAX: u64 = 256 * 1024;

/// The number under which virtiofsd finds its listening socket.
const SOCKET_FD: i32 = 3;

/// A running virtiofsd. Dropping it kills nothing: call [`Share::stop`].
#[derive(Debug)]
pub struct Share {
    served: PathBuf,
    socket: PathBuf,
    mark: Option<ProcessMark>,
    exit: ExitWatch,
    log: BoundedLog,
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No virtiofsd where it was looked for.
    #[error(
        "no virtiofsd at {0}; install it (Debian: virtiofsd) or set its path in the handler's file"
    )]
    Missing(String),
    /// The program is no virtiofsd, or lacks an option that is needed.
    #[error("{program} cannot serve a Pod: {reason}")]
    Unfit {
        /// The program.
        program: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// A file or directory of the share could not be made, read or removed.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A process could not be started.
    #[error("starting virtiofsd")]
    Host(#[from] HostError),
    /// A mount could not be made or taken down.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A source's file system does not answer.
    #[error(
        "mounting for container {container} took more than {seconds} s; is a volume's server gone?"
    )]
    Stalled {
        /// The container.
        container: String,
        /// The bound that ran out.
        seconds: u64,
    },
    /// A killed process is still there.
    #[error("virtiofsd (process {0}) is still there after SIGKILL")]
    Survives(u32),
}

impl Classified for ShareError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing(_) => Kind::Unavailable,
            Self::Unfit { .. } => Kind::FailedPrecondition,
            Self::Io { .. } | Self::Survives(_) => Kind::Internal,
            Self::Host(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Stalled { .. } => Kind::DeadlineExceeded,
        }
    }
}

impl ShareError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

impl Share {
    /// Starts `program` on `tree`. The socket can be connected to as soon as this returns: the
    /// process is born with it listening.
    ///
    /// # Errors
    ///
    /// [`ShareError::Io`] when `<dir>/fs.sock` (at most 107 bytes) or the log cannot be made,
    /// [`ShareError::Host`] when the program does not start.
    pub fn start(
        host: &dyn Host,
        program: &Virtiofsd,
        tree: &Tree,
        user: Option<u32>,
    ) -> Result<Self, ShareError> {
        let socket = tree.dir().join("fs.sock");
        let listener = listen(&socket, user)?;
        let path = tree.dir().join("virtiofsd.log");
        let (log, stderr) =
            BoundedLog::piped(&path, LOG_MAX).map_err(ShareError::io("writing", &path))?;
        let command = program
            .command(tree.served(), SOCKET_FD)
            .fd(SOCKET_FD, listener)
            .stderr(stderr)
            // Its own group, so that one signal reaches it and the child it forks.
            .new_session();
        let child = host.spawn(command)?;
        let mark = ProcessMark::of(child.pid);
        Ok(Self { served: tree.served().to_owned(), socket, mark, exit: child.exit, log })
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The processes that serve: virtiofsd and, once it has entered its sandbox, its child.
    pub fn processes(&self) -> Vec<ProcessMark> {
        self.mark.into_iter().flat_map(leftover::with_children).collect()
    }

    /// Resolves when virtiofsd has ended, at once if it already has.
    pub async fn exited(&self) -> Exit {
        self.exit.wait().await
    }

    /// The end of what it wrote to its log, for an error's message.
    pub fn log_tail(&self) -> String {
        self.log.tail()
    }

    /// Ends it at once and removes its socket. Idempotent.
    ///
    /// # Errors
    ///
    /// [`ShareError::Survives`] when a process is not gone in time.
    pub async fn stop(&self) -> Result<(), ShareError> {
        if let Some(mark) = self.mark.filter(ProcessMark::alive) {
            // Gone in this very moment, or killed: the wait below tells.
            let group = Pid::from_raw(i32::try_from(mark.pid).unwrap_or(i32::MAX));
            let _ = killpg(group, Signal::SIGKILL);
            tokio::time::timeout(KILL_DEADLINE, self.exit.wait())
                .await
                .map_err(|_| ShareError::Survives(mark.pid))?;
        }
        leftover::kill(&self.served, KILL_DEADLINE).await?;
        remove_socket(&self.socket)
    }
}

/// Ends what serves `<dir>/share` and takes every mount below it down, from the name alone; for
/// a process that knows nothing else. Idempotent.
///
/// # Errors
///
/// The first fault; every step is done nevertheless.
pub async fn purge(host: Arc<dyn Host>, dir: &Path) -> Result<(), ShareError> {
    let tree = Tree::at(host, dir);
    let killed = leftover::kill(tree.served(), KILL_DEADLINE).await;
    let removed = tree.destroy();
    killed.and(removed).and(remove_socket(&dir.join("fs.sock")))
}

fn listen(socket: &Path, user: Option<u32>) -> Result<OwnedFd, ShareError> {
    remove_socket(socket)?;
    let listener = UnixListener::bind(socket).map_err(ShareError::io("listening on", socket))?;
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o600))
        .and_then(|()| user::give(socket, user))
        .map_err(ShareError::io("closing to others", socket))?;
    Ok(listener.into())
}

fn remove_socket(socket: &Path) -> Result<(), ShareError> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ShareError::io("removing", socket)(error))
        }
        _ => Ok(()),
    }
}
