//! A process's streams: a vsock connection each on the guest's side, a fifo, file or logger on
//! containerd's, and a task that copies between them. A stalled end blocks its own stream only.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use parking_lot::Mutex;
use sandbox_core::StdioPaths;
use sandbox_core::stdio::{ProcessFds, Streams};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::guest::{Guest, GuestError, Key};

/// Size of a copy in bytes: the default capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// How long the deletion of a process that has exited is held back for its output. The copying
/// continues afterwards at the reader's pace.
const DRAIN: Duration = Duration::from_secs(2);

/// The streams of one process, being copied.
#[derive(Debug)]
pub(crate) struct Copying {
    held: Streams,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    input: Option<JoinHandle<()>>,
}

impl Drop for Copying {
    fn drop(&mut self) {
        // Outputs continue, since output of the process may still be in flight. They end with the
        // guest's connection or with their reader.
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

impl Copying {
    /// Connects the process `key` of the guest to `fds`; `held` keeps containerd's ends open.
    pub(crate) async fn connect(
        guest: &Guest,
        key: &Key,
        paths: &StdioPaths,
        fds: ProcessFds,
        held: Streams,
    ) -> Result<Self, GuestError> {
        if paths.terminal {
            let (from, to) = guest.stream(key, "terminal").await?.into_split();
            let outputs = Mutex::new(vec![output(from, fds.stdout)]);
            let input = paths.stdin.is_some().then(|| input(fds.stdin, to, false));
            return Ok(Self { held, outputs, input });
        }
        let stream = async |name, path: &Option<String>| match path {
            Some(_) => guest.stream(key, name).await.map(Some),
            None => Ok(None),
        };
        let (stdin, stdout, stderr) = tokio::try_join!(
            stream("stdin", &paths.stdin),
            stream("stdout", &paths.stdout),
            stream("stderr", &paths.stderr),
        )?;
        let outputs = [(stdout, fds.stdout), (stderr, fds.stderr)];
        let outputs = outputs.into_iter().filter_map(|(from, to)| Some(output(from?, to)));
        let input = stdin.map(|to| input(fds.stdin, to, true));
        Ok(Self { held, outputs: Mutex::new(outputs.collect()), input })
    }

    /// Lets the process read end-of-file once the client's writer is closed too.
    pub(crate) fn close_stdin(&self) {
        self.held.close_stdin();
    }

    /// Waits until the remaining output of the exited process is copied, for two seconds at most.
    pub(crate) async fn finish(&self) {
        let outputs = std::mem::take(&mut *self.outputs.lock());
        let all = futures::future::join_all(outputs);
        // A stalled reader gets the rest when it reads again.
        let _ = tokio::time::timeout(DRAIN, all).await;
        self.held.finish().await;
    }
}

/// Copies from the guest to `to` until either side ends.
fn output(from: impl AsyncRead + Send + Unpin + 'static, to: OwnedFd) -> JoinHandle<()> {
    tokio::spawn(async move {
        let result = match sink(to) {
            Ok(sink) => copy(from, sink).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::debug!("an output of the guest has failed: {error}");
        }
    })
}

/// Copies from `from` to the guest. At the end of `from` it shuts down the connection if `half` of
/// it may be closed.
fn input(
    from: OwnedFd,
    mut to: impl AsyncWrite + Send + Unpin + 'static,
    half: bool,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let result = match source(from) {
            Ok(source) => copy(source, &mut to).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(()) if half => to.shutdown().await,
            // The connection of a terminal has to outlive its input, until this task is aborted.
            Ok(()) => std::future::pending().await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::debug!("an input of the guest has failed: {error}");
        }
    })
}

/// Copies to the end. The large buffer is allocated only while there is much to copy.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let mut first = [0; 512];
        let mut read = from.read(&mut first).await?;
        if read == 0 {
            return to.flush().await;
        }
        to.write_all(&first[..read]).await?;
        if read < first.len() {
            continue;
        }
        let mut chunk = vec![0; CHUNK];
        while read > 0 {
            read = from.read(&mut chunk).await?;
            to.write_all(&chunk[..read]).await?;
            if read < chunk.len() / 16 {
                break;
            }
        }
        if read == 0 {
            return to.flush().await;
        }
    }
}

/// Whether the file can be polled; a log file or `/dev/null` never blocks.
fn is_pipe(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}

/// Containerd's end of an output.
fn sink(fd: OwnedFd) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    let file = File::from(fd);
    Ok(match is_pipe(&file)? {
        true => Box::new(pipe::Sender::from_file(file)?),
        false => Box::new(tokio::fs::File::from_std(file)),
    })
}

/// Containerd's end of an input.
fn source(fd: OwnedFd) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    let file = File::from(fd);
    Ok(match is_pipe(&file)? {
        true => Box::new(pipe::Receiver::from_file(file)?),
        false => Box::new(tokio::fs::File::from_std(file)),
    })
}
