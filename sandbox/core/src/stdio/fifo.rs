//! Fifos, opened so that neither side waits for the other and no data is lost.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::error::StdioError;

/// First and longest interval between two checks for a fifo's reader.
const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(50);

/// Holds the reading end of an output fifo: while containerd restarts, the process can continue to
/// write until the pipe is full, and gets no SIGPIPE.
#[derive(Debug)]
pub(super) struct OutputHold {
    path: PathBuf,
    reader: Mutex<Hold>,
}

#[derive(Debug)]
enum Hold {
    Reader {
        _open: File,
    },
    /// The process has exited, its fifo has no reader yet.
    Lingering(JoinHandle<()>),
    Released,
}

/// Opens a stdin fifo: its reading end for the process, a writing end to hold.
pub(super) fn stdin(path: &str) -> Result<(OwnedFd, Option<File>), StdioError> {
    let failed = |source| StdioError::Open { stream: "stdin", path: path.to_owned(), source };
    if !is_fifo(path.as_ref()).map_err(failed)? {
        let file = File::open(path).map_err(failed)?;
        return Ok((file.into(), None));
    }
    // Not blocking: opening a fifo's reading end otherwise waits for a writer.
    let reader = nonblocking(File::options().read(true), path.as_ref()).map_err(failed)?;
    let hold = nonblocking(File::options().write(true), path.as_ref()).map_err(failed)?;
    blocking(&reader).map_err(failed)?;
    Ok((reader.into(), Some(hold)))
}

/// Opens an output fifo: its writing end for the process, and a hold on it.
pub(super) fn output(
    stream: &'static str,
    path: &Path,
) -> Result<(OwnedFd, Option<OutputHold>), StdioError> {
    let failed = |source| StdioError::Open { stream, path: path.display().to_string(), source };
    if !is_fifo(path).map_err(failed)? {
        let file = File::options().append(true).open(path).map_err(failed)?;
        return Ok((file.into(), None));
    }
    let reader = nonblocking(File::options().read(true), path).map_err(failed)?;
    let writer = nonblocking(File::options().write(true), path).map_err(failed)?;
    blocking(&writer).map_err(failed)?;
    let hold =
        OutputHold { path: path.to_owned(), reader: Mutex::new(Hold::Reader { _open: reader }) };
    Ok((writer.into(), Some(hold)))
}

impl OutputHold {
    /// Lets the reader see end-of-file. Without a reader the pipe is held until it has one:
    /// containerd may be restarting, with output left in the pipe, or may not have opened its end
    /// yet, and that open would block forever without a writer.
    pub(super) fn release(&self) {
        let mut hold = self.reader.lock();
        if !matches!(*hold, Hold::Reader { .. }) {
            return;
        }
        let reader = std::mem::replace(&mut *hold, Hold::Released);
        // Before the reading end is closed, else the open would fail.
        let writer = nonblocking(File::options().write(true), &self.path);
        drop(reader);
        let Ok(writer) = writer else {
            // The fifo was removed: no reader can open it any more.
            return;
        };
        if !has_reader(&writer) {
            *hold = Hold::Lingering(tokio::spawn(async move {
                let mut pause = POLL_MIN;
                while !has_reader(&writer) {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(POLL_MAX);
                }
            }));
        }
    }
}

impl Drop for OutputHold {
    fn drop(&mut self) {
        let hold = self.reader.get_mut();
        if let Hold::Lingering(task) = hold {
            task.abort();
        }
    }
}

/// Whether any process has the reading end open.
fn has_reader(writer: &File) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => !fds[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR)),
        Err(_) => false,
    }
}

fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.file_type().is_fifo())
}

fn nonblocking(options: &mut std::fs::OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// Clears the non-blocking flag: the process expects an ordinary stream.
fn blocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(())
}

pub(super) fn close_on_exec(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}
