//! `binary://` loggers: a program that reads a container's output from fds 3 and 4 and signals on
//! fd 5 that it is ready (containerd's logging contract, `core/runtime/v2/README.md`).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use percent_encoding::percent_decode_str;
use sandbox_host::{Child, Command, Host, ProcessRef};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::error::StdioError;
use crate::id::Id;

/// The container a stream belongs to, for loggers.
#[derive(Debug, Clone)]
pub struct Owner {
    /// containerd's namespace.
    pub namespace: Id,
    /// The container.
    pub container: Id,
}

/// How long a logger may take to become ready, and to exit after the last output.
const DEADLINE: Duration = Duration::from_secs(10);

/// A running logger. It exits at end-of-file.
#[derive(Debug)]
pub(super) struct Logger {
    child: Child,
}

/// Starts the logger of `binary://{uri}` and returns the fds for standard output and error.
pub(super) async fn start(
    uri: &str,
    owner: &Owner,
    host: &dyn Host,
) -> Result<(Logger, [OwnedFd; 2]), StdioError> {
    let (path, args) = split(uri);
    let not_ready = |source| StdioError::LoggerNotReady { path: path.clone(), source };
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
    let (out_r, out_w) = pipe().map_err(not_ready)?;
    let (err_r, err_w) = pipe().map_err(not_ready)?;
    let (ready_r, ready_w) = pipe().map_err(not_ready)?;
    let command = Command::new(&path)
        .args(args)
        .env("CONTAINER_ID", owner.container.as_str())
        .env("CONTAINER_NAMESPACE", owner.namespace.as_str())
        .fd(3, out_r)
        .fd(4, err_r)
        .fd(5, ready_w)
        .outlives_parent();
    let child =
        host.spawn(command).map_err(|source| StdioError::Logger { path: path.clone(), source })?;
    let logger = Logger { child };
    let mut ready = pipe::Receiver::from_owned_fd(ready_r).map_err(not_ready)?;
    // A byte or end-of-file: both mean ready, unless the logger has failed.
    let mut byte = [0];
    match tokio::time::timeout(DEADLINE, ready.read(&mut byte)).await {
        Ok(Ok(_)) if has_failed(&logger).await => {
            Err(not_ready(io::Error::other("it exited with an error")))
        }
        Ok(Ok(_)) => Ok((logger, [out_w, err_w])),
        Ok(Err(source)) => Err(not_ready(source)),
        Err(_) => {
            logger.kill();
            Err(not_ready(io::ErrorKind::TimedOut.into()))
        }
    }
}

/// Whether the logger exited with an error instead of becoming ready. Waits a moment, since its
/// fd 5 is closed before it is reaped.
async fn has_failed(logger: &Logger) -> bool {
    let moment = Duration::from_millis(20);
    match tokio::time::timeout(moment, logger.child.exit.wait()).await {
        Ok(exit) => exit.status != 0,
        Err(_) => false,
    }
}

impl Logger {
    /// Waits until it has written what it read, for a bounded time, then kills it.
    pub(super) async fn finish(&self) {
        if tokio::time::timeout(DEADLINE, self.child.exit.wait()).await.is_err() {
            tracing::warn!(
                pid = self.child.pid,
                "killing a logger that does not exit at end-of-file"
            );
            self.kill();
        }
    }

    fn kill(&self) {
        if let Some(process) = ProcessRef::of(self.child.pid) {
            process.kill();
        }
    }
}

/// Path and arguments of `PATH?KEY=VALUE&...`: each pair is two arguments, as containerd's own
/// shim passes them.
fn split(uri: &str) -> (String, Vec<String>) {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let args = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .flat_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            [key, value].map(|part| decode(&part.replace('+', " ")))
        })
        .filter(|part| !part.is_empty())
        .collect();
    (decode(path), args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_uris() {
        assert_eq!(split("/usr/bin/log"), ("/usr/bin/log".into(), vec![]));
        let (path, args) = split("/a%20b?--id=x%2Fy&flag&k=a+b");
        assert_eq!(path, "/a b");
        assert_eq!(args, ["--id", "x/y", "flag", "k", "a b"]);
    }
}
