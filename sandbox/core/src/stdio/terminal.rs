//! A pseudo-terminal's master and the tasks that copy between it and the fifos.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::error::StdioError;
use super::fifo;

/// Enough for a terminal, which needs no throughput.
const BUFFER: usize = 4096;

/// How long [`Terminal::finish`] waits for the reader of the last output.
pub(super) const DRAIN: Duration = Duration::from_secs(2);

/// Signals typed at the terminal.
pub(super) type Typed = mpsc::UnboundedReceiver<i32>;

/// The master and the two tasks that copy.
#[derive(Debug)]
pub(super) struct Terminal {
    master: Arc<AsyncFd<File>>,
    input: Option<JoinHandle<()>>,
    output: Mutex<JoinHandle<()>>,
    typed: parking_lot::Mutex<Option<Typed>>,
}

impl Terminal {
    /// Copies `stdin` to the terminal and its output to `stdout`. Without a `stdout` the output is
    /// discarded, so that the process does not block.
    pub(super) fn new(
        master: OwnedFd,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
    ) -> io::Result<Self> {
        fifo::close_on_exec(&master)?;
        let master = Arc::new(pollable(master)?);
        let (signals, typed) = mpsc::unbounded_channel();
        let input = match stdin {
            Some(stdin) => {
                let source = Source::new(stdin)?;
                Some(tokio::spawn(feed(source, Arc::clone(&master), signals)))
            }
            None => None,
        };
        let sink = stdout.map(Sink::new).transpose()?;
        let output = Mutex::new(tokio::spawn(drain(Arc::clone(&master), sink)));
        Ok(Self { master, input, output, typed: parking_lot::Mutex::new(Some(typed)) })
    }

    #[allow(unsafe_code, reason = "TIOCSWINSZ has no safe wrapper")]
    pub(super) fn resize(&self, width: u16, height: u16) -> Result<(), StdioError> {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize from the pointer.
        let result =
            unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if result == 0 {
            return Ok(());
        }
        Err(StdioError::Terminal { step: "resizing", source: io::Error::last_os_error() })
    }

    /// The signals typed from now on; `None` on a second call.
    pub(super) fn take_typed(&self) -> Option<Typed> {
        self.typed.lock().take()
    }

    /// Waits until the last output is copied, for [`DRAIN`] at most: a stalled reader gets the rest
    /// later, as long as this value is not dropped.
    pub(super) async fn finish(&self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        let mut output = self.output.lock().await;
        if !output.is_finished() {
            // A timeout is not an error: the task continues.
            let _ = tokio::time::timeout(DRAIN, &mut *output).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        self.output.get_mut().abort();
    }
}

/// The input: a file that epoll supports, such as a fifo, or a regular one.
#[derive(Debug)]
struct Source(Ready);

/// The output.
#[derive(Debug)]
struct Sink(Ready);

#[derive(Debug)]
enum Ready {
    Polled(AsyncFd<File>),
    /// Regular files cannot be polled; they are always ready.
    Always(File),
}

impl Ready {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        if file.metadata()?.is_file() {
            return Ok(Self::Always(file));
        }
        pollable(file.into()).map(Self::Polled)
    }
}

impl Source {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ready::new(fd).map(Self)
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Ready::Polled(fd) => read(fd, buffer).await,
            Ready::Always(file) => file.read(buffer),
        }
    }
}

impl Sink {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ready::new(fd).map(Self)
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Ready::Polled(fd) => write_all(fd, bytes).await,
            Ready::Always(file) => file.write_all(bytes),
        }
    }
}

#[allow(unsafe_code, reason = "registering with epoll asks for a stable fd")]
fn pollable(fd: OwnedFd) -> io::Result<AsyncFd<File>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: the AsyncFd owns the file, whose fd does not change.
    unsafe { AsyncFd::register(File::from(fd)) }.map_err(io::Error::from)
}

async fn read(fd: &AsyncFd<File>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        if let Ok(result) = ready.try_io(|fd| fd.get_ref().read(buffer)) {
            return result;
        }
    }
}

async fn write_all(fd: &AsyncFd<File>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| fd.get_ref().write(bytes)) {
            Ok(Ok(written)) => bytes = &bytes[written..],
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// The signals that `keys` generate with the terminal's current settings (termios(3): `ISIG`).
fn signals_in(master: &File, keys: &[u8]) -> Vec<i32> {
    const DISABLED: u8 = 0;
    let Ok(settings) = tcgetattr(master) else { return Vec::new() };
    if !settings.local_flags.contains(LocalFlags::ISIG) {
        return Vec::new();
    }
    let meaning = [
        (SpecialCharacterIndices::VINTR, libc::SIGINT),
        (SpecialCharacterIndices::VQUIT, libc::SIGQUIT),
        (SpecialCharacterIndices::VSUSP, libc::SIGTSTP),
    ];
    let signal = |key: &u8| {
        let found = meaning.iter().find(|(at, _)| settings.control_chars[*at as usize] == *key);
        found.map(|(_, signal)| *signal).filter(|_| *key != DISABLED)
    };
    keys.iter().filter_map(signal).collect()
}

/// Copies the client's input to the terminal until its end is closed.
async fn feed(mut from: Source, master: Arc<AsyncFd<File>>, signals: mpsc::UnboundedSender<i32>) {
    let mut buffer = [0; BUFFER];
    loop {
        let copied = match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(read) => {
                let typed = signals_in(master.get_ref(), &buffer[..read]);
                let written = write_all(&master, &buffer[..read]).await;
                for signal in typed {
                    // Without a receiver the host's kernel delivers them.
                    let _ = signals.send(signal);
                }
                written
            }
            Err(e) => Err(e),
        };
        if let Err(error) = copied {
            tracing::debug!("copying to the terminal failed: {error}");
            return;
        }
    }
}

/// Copies the terminal's output until its last user has closed it (EIO on Linux). After a failed
/// write the terminal is still read, so that the process does not block.
async fn drain(master: Arc<AsyncFd<File>>, mut to: Option<Sink>) {
    let mut buffer = [0; BUFFER];
    loop {
        let read = match read(&master, &mut buffer).await {
            Ok(0) => return,
            Ok(read) => read,
            Err(e) if e.raw_os_error() == Some(libc::EIO) => return,
            Err(error) => {
                tracing::warn!("reading from the terminal failed: {error}");
                return;
            }
        };
        let Some(sink) = &mut to else { continue };
        if let Err(error) = sink.write_all(&buffer[..read]).await {
            tracing::warn!("discarding further output of the terminal: {error}");
            to = None;
        }
    }
}
