//! A process's streams.
//!
//! Without a terminal nothing is copied: the process gets the fifo (or file, or logger's pipe)
//! itself, and the shim only holds the ends that keep it usable while containerd restarts. With a
//! terminal two tasks copy between the pseudo-terminal and the fifos.

mod console;
mod error;
mod fifo;
mod logger;
mod terminal;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use sandbox_host::Host;
use tokio::sync::mpsc;

use crate::request::StdioPaths;
use fifo::OutputHold;
use logger::Logger;
use terminal::Terminal;

pub use console::ConsoleSocket;
pub use error::StdioError;
pub use logger::Owner;

/// The process's fds 0, 1 and 2.
#[derive(Debug)]
pub struct ProcessFds {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// The shim's ends of a process's streams.
#[derive(Debug)]
pub struct Streams {
    /// A writer of the stdin fifo: while it is open the process reads no end-of-file.
    stdin: Mutex<Option<File>>,
    outputs: Vec<OutputHold>,
    loggers: Vec<Logger>,
    terminal: Option<Terminal>,
}

/// Opens the streams of a process without a terminal.
///
/// # Errors
///
/// [`StdioError`] names the stream and its path.
pub async fn open(
    paths: &StdioPaths,
    owner: &Owner,
    host: &dyn Host,
) -> Result<(ProcessFds, Streams), StdioError> {
    let (stdin, hold) = match &paths.stdin {
        Some(path) => fifo::stdin(path)?,
        None => (null("stdin")?, None),
    };
    let mut streams = Streams::new(hold);
    // One logger serves both streams when they name the same URI.
    let shared = paths.stdout.is_some() && paths.stdout == paths.stderr;
    let (stdout, stderr) =
        match paths.stdout.as_deref().and_then(|uri| uri.strip_prefix("binary://")) {
            Some(uri) if shared => {
                let (logger, [out, err]) = logger::start(uri, owner, host).await?;
                streams.loggers.push(logger);
                (out, err)
            }
            _ => (
                streams.output("stdout", paths.stdout.as_deref(), owner, host).await?,
                streams.output("stderr", paths.stderr.as_deref(), owner, host).await?,
            ),
        };
    Ok((ProcessFds { stdin, stdout, stderr }, streams))
}

/// Opens a new pseudo-terminal, connects it to `paths` and returns the process's side.
///
/// # Errors
///
/// As [`open`].
pub async fn open_terminal(
    paths: &StdioPaths,
    owner: &Owner,
    host: &dyn Host,
) -> Result<(OwnedFd, Streams), StdioError> {
    let pair = nix::pty::openpty(None, None)
        .map_err(|e| StdioError::Terminal { step: "opening", source: e.into() })?;
    for fd in [&pair.master, &pair.slave] {
        fifo::close_on_exec(fd)
            .map_err(|source| StdioError::Terminal { step: "opening", source })?;
    }
    Ok((pair.slave, attach_terminal(pair.master, paths, owner, host).await?))
}

/// Connects the master of an existing pseudo-terminal to `paths`.
///
/// # Errors
///
/// As [`open`].
pub async fn attach_terminal(
    master: OwnedFd,
    paths: &StdioPaths,
    owner: &Owner,
    host: &dyn Host,
) -> Result<Streams, StdioError> {
    let (stdin, hold) = match &paths.stdin {
        Some(path) => fifo::stdin(path).map(|(fd, hold)| (Some(fd), hold))?,
        None => (None, None),
    };
    let mut streams = Streams::new(hold);
    let stdout = match &paths.stdout {
        Some(_) => Some(streams.output("stdout", paths.stdout.as_deref(), owner, host).await?),
        None => None,
    };
    let terminal = Terminal::new(master, stdin, stdout)
        .map_err(|source| StdioError::Terminal { step: "attaching", source })?;
    streams.terminal = Some(terminal);
    Ok(streams)
}

impl Streams {
    fn new(stdin: Option<File>) -> Self {
        Self { stdin: Mutex::new(stdin), outputs: Vec::new(), loggers: Vec::new(), terminal: None }
    }

    /// Opens one output, and keeps its hold or logger.
    async fn output(
        &mut self,
        stream: &'static str,
        uri: Option<&str>,
        owner: &Owner,
        host: &dyn Host,
    ) -> Result<OwnedFd, StdioError> {
        let Some(uri) = uri else { return null(stream) };
        match uri.split_once("://") {
            None => {
                let (fd, hold) = fifo::output(stream, Path::new(uri))?;
                self.outputs.extend(hold);
                Ok(fd)
            }
            Some(("fifo", path)) => {
                let (fd, hold) = fifo::output(stream, Path::new(path))?;
                self.outputs.extend(hold);
                Ok(fd)
            }
            Some(("file", path)) => append(stream, Path::new(path)),
            Some(("binary", uri)) => {
                let (logger, [out, err]) = logger::start(uri, owner, host).await?;
                self.loggers.push(logger);
                Ok(if stream == "stderr" { err } else { out })
            }
            Some(_) => Err(StdioError::Scheme { stream, uri: uri.to_owned() }),
        }
    }

    /// Closes the held writer: the process reads end-of-file once the client's is closed too.
    pub fn close_stdin(&self) {
        self.stdin.lock().take();
    }

    /// Sets the terminal's size; does nothing without a terminal.
    ///
    /// # Errors
    ///
    /// When the ioctl fails.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), StdioError> {
        match &self.terminal {
            Some(terminal) => terminal.resize(width, height),
            None => Ok(()),
        }
    }

    /// The signals typed at the terminal (interrupt, quit, suspend) from now on; `None` on a second
    /// call. A backend whose processes are not the host kernel's has to deliver them.
    pub fn typed_signals(&self) -> Option<mpsc::UnboundedReceiver<i32>> {
        self.terminal.as_ref()?.take_typed()
    }

    /// Whether there is a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Completes the streams of a process that has exited: copies the terminal's last output (for
    /// at most two seconds; a stalled reader gets the rest later) and closes held ends, so that
    /// readers see end-of-file. A fifo without a reader is held until it has one or this value is
    /// dropped.
    pub async fn finish(&self) {
        self.close_stdin();
        if let Some(terminal) = &self.terminal {
            terminal.finish().await;
        }
        for output in &self.outputs {
            output.release();
        }
        for logger in &self.loggers {
            logger.finish().await;
        }
    }
}

fn null(stream: &'static str) -> Result<OwnedFd, StdioError> {
    let path = PathBuf::from("/dev/null");
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map(OwnedFd::from)
        .map_err(|source| StdioError::Open { stream, path: path.display().to_string(), source })
}

/// Opens a log file for appending, and creates its directory.
fn append(stream: &'static str, path: &Path) -> Result<OwnedFd, StdioError> {
    let open = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::options().append(true).create(true).open(path)
    };
    open().map(OwnedFd::from).map_err(|source| StdioError::Open {
        stream,
        path: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests;
