//! The virtiofsd that serves a Pod's shared directory.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sandbox_core::Exit;
use sandbox_host::{ExitWatch, Host, ProcessRef};
use vm_driver::{BoundedLog, chown};

use crate::error::ShareError;
use crate::leftover;
use crate::program::Virtiofsd;
use crate::tree::Tree;

/// How long virtiofsd may take to exit after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How much of virtiofsd's output goes to its log file, in bytes.
const LOG_MAX: u64 = 256 * 1024;

/// The descriptor of the listening socket in virtiofsd.
const SOCKET_FD: i32 = 3;

/// A running virtiofsd. Dropping it kills nothing: call [`Share::stop`].
#[derive(Debug)]
pub struct Share {
    served: PathBuf,
    socket: PathBuf,
    mark: Option<ProcessRef>,
    exit: ExitWatch,
    log: BoundedLog,
}

impl Share {
    /// Starts `program` on `tree`. The socket accepts connections as soon as this returns, since the
    /// process inherits it.
    ///
    /// # Errors
    ///
    /// [`ShareError::Io`] when `<dir>/fs.sock` (at most 107 bytes) or the log cannot be created,
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
            // A group of its own, so that one signal reaches it and the child that it forks.
            .new_session();
        let child = host.spawn(command)?;
        let mark = ProcessRef::of(child.pid);
        Ok(Self { served: tree.served().to_owned(), socket, mark, exit: child.exit, log })
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The processes that serve: virtiofsd and, once it has entered its sandbox, its child.
    pub fn processes(&self) -> Vec<ProcessRef> {
        self.mark.into_iter().flat_map(leftover::with_children).collect()
    }

    /// Resolves when virtiofsd has exited.
    pub async fn exited(&self) -> Exit {
        self.exit.wait().await
    }

    /// The tail of its log, for error messages.
    pub fn log_tail(&self) -> String {
        self.log.tail()
    }

    /// Kills it and removes its socket. Idempotent.
    ///
    /// # Errors
    ///
    /// [`ShareError::Survives`] when a process does not exit in time.
    pub async fn stop(&self) -> Result<(), ShareError> {
        if let Some(mark) = self.mark.filter(ProcessRef::alive) {
            // It may have exited just now: the wait below decides.
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

/// Kills what serves `<dir>/share` and unmounts everything below it, for a process that knows the
/// directory only. Idempotent.
///
/// # Errors
///
/// The first failure; all other steps are done nevertheless.
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
        .and_then(|()| chown(socket, user))
        .map_err(ShareError::io("restricting access to", socket))?;
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
