//! Following the log files that the runtime writes for containers.

mod format;
mod output;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::{Notify, oneshot};

use format::Lines;
pub use output::{Output, Printer};

const CHUNK: usize = 256 * 1024;

/// Why a log could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file could not be watched or read.
    #[error("cannot follow the log {path}")]
    File {
        /// The log.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not a CRI log.
    #[error("{path}: not a line of a CRI log: {line:?}")]
    Format {
        /// The log.
        path: PathBuf,
        /// The line, shortened.
        line: String,
    },
    /// The output is closed.
    #[error("cannot print the logs")]
    Print(#[source] io::Error),
    /// The thread that follows the log panicked.
    #[error("the log of {0} is no longer followed")]
    Lost(PathBuf),
}

/// A log that is being printed as it grows, on a thread of its own: printing blocks.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    stop: Arc<EventFd>,
    done: oneshot::Receiver<Result<(), LogError>>,
    closed: Arc<Notify>,
}

impl Follower {
    /// Starts to follow an existing file.
    ///
    /// # Errors
    ///
    /// [`LogError::File`] when it cannot be opened or no thread can be started.
    pub fn start(path: &Path, printer: Printer) -> Result<Self, LogError> {
        let failed = |source| LogError::File { path: path.to_owned(), source };
        let stop =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|error| failed(error.into()))?;
        let stop = Arc::new(stop);
        let closed = Arc::new(Notify::new());
        let (send, done) = oneshot::channel();
        let mut tail = Tail::open(path, printer)?;
        let thread_stop = Arc::clone(&stop);
        let thread_closed = Arc::clone(&closed);
        let run = move || {
            let result = tail.follow(&thread_stop, &thread_closed);
            // Wakes the waiter for the container's exit, which then finds the error here.
            thread_closed.notify_one();
            // The receiver may be gone already.
            let _gone = send.send(result);
        };
        thread::Builder::new().name("log".into()).spawn(run).map_err(failed)?;
        Ok(Self { path: path.to_owned(), stop, done, closed })
    }

    /// Notified when the runtime has closed the log, which it does after the container's exit.
    pub(crate) fn closed(&self) -> Arc<Notify> {
        Arc::clone(&self.closed)
    }

    /// Returns the error that following failed with, if any.
    pub(crate) fn check(&mut self) -> Result<(), LogError> {
        match self.done.try_recv() {
            Ok(result) => result,
            Err(oneshot::error::TryRecvError::Empty) => Ok(()),
            Err(oneshot::error::TryRecvError::Closed) => Err(LogError::Lost(self.path.clone())),
        }
    }

    /// Prints the rest of the file and stops.
    pub(crate) async fn finish(mut self) -> Result<(), LogError> {
        let source = |errno: nix::errno::Errno| LogError::File {
            path: self.path.clone(),
            source: errno.into(),
        };
        self.stop.write(1).map_err(source)?;
        let result = (&mut self.done).await;
        result.unwrap_or_else(|_| Err(LogError::Lost(self.path.clone())))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // An eventfd fails only at its largest value, and then the thread is notified already.
        let _notified = self.stop.write(1);
    }
}

/// Prints a file as it is now.
///
/// # Errors
///
/// [`LogError`] when it cannot be read, is no CRI log, or cannot be printed.
pub fn print_log(path: &Path, printer: Printer) -> Result<(), LogError> {
    let mut tail = Tail::open(path, printer)?;
    tail.drain()?;
    tail.end()
}

struct Tail {
    path: PathBuf,
    file: File,
    lines: Lines,
    printer: Printer,
}

impl Tail {
    fn open(path: &Path, printer: Printer) -> Result<Self, LogError> {
        let file =
            File::open(path).map_err(|source| LogError::File { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, lines: Lines::default(), printer })
    }

    fn failed<E: Into<io::Error>>(&self, error: E) -> LogError {
        LogError::File { path: self.path.clone(), source: error.into() }
    }

    fn follow(&mut self, stop: &EventFd, closed: &Notify) -> Result<(), LogError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| self.failed(error))?;
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
        inotify.add_watch(&self.path, events).map_err(|error| self.failed(error))?;
        loop {
            self.drain()?;
            let mut ready = [
                PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result.map_err(|error| self.failed(error))?,
            };
            if ready[1].any().unwrap_or(true) {
                self.drain()?;
                return self.end();
            }
            let events = inotify.read_events().map_err(|error| self.failed(error))?;
            if events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE)) {
                closed.notify_one();
            }
        }
    }

    /// Prints up to the file's current end. A truncated file is read from its start.
    fn drain(&mut self) -> Result<(), LogError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match self.file.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| self.failed(error))?,
            };
            if read == 0 {
                return self.rewind_if_truncated();
            }
            let path = &self.path;
            let printer = &mut self.printer;
            self.lines
                .feed(&chunk[..read], |entry| printer.add(&entry))
                .map_err(|line| LogError::Format { path: path.clone(), line })?;
            printer.write().map_err(LogError::Print)?;
        }
    }

    fn rewind_if_truncated(&mut self) -> Result<(), LogError> {
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
        let position = self.file.stream_position().map_err(|error| self.failed(error))?;
        if length < position {
            self.file.seek(SeekFrom::Start(0)).map_err(|error| self.failed(error))?;
            return self.drain();
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), LogError> {
        self.printer.end().map_err(LogError::Print)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::output::testing::Memory;
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn everything_up_to_the_end_is_printed() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let (output, streams) = Memory::output();
        let output = Arc::new(output);
        let follower =
            Follower::start(log.path(), Printer::new(Arc::clone(&output), None)).unwrap();
        runtime().block_on(async {
            let mut writer = File::options().append(true).open(log.path()).unwrap();
            let mut wanted = String::new();
            for n in 0..50_000 {
                writeln!(writer, "2024-01-01T00:00:00.0Z stdout F line {n}").unwrap();
                wanted.push_str(&format!("line {n}\n"));
            }
            let closed = follower.closed();
            drop(writer);
            tokio::time::timeout(Duration::from_secs(20), closed.notified()).await.unwrap();
            let mut late = File::options().append(true).open(log.path()).unwrap();
            writeln!(late, "2024-01-01T00:00:00.0Z stderr P half").unwrap();
            follower.finish().await.unwrap();
            assert_eq!(streams.take(), (wanted, "half".to_owned()));
        });
    }

    #[test]
    fn a_line_that_is_no_log_line_is_named() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        writeln!(log, "garbage").unwrap();
        let printer = Printer::new(Arc::new(Memory::output().0), None);
        let error = print_log(log.path(), printer).unwrap_err();
        assert!(matches!(error, LogError::Format { line, .. } if line == "garbage"));
    }
}
