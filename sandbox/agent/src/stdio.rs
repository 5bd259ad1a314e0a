//! The agent's ends of a process's standard streams.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::agent::Stdio;
use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

use crate::door::Streams;
use crate::error::{Doing, Result, invalid, refused};

/// A terminal's master side.
#[derive(Debug)]
pub(crate) struct Pty(AsyncFd<OwnedFd>);

/// The agent's ends: each waits for the host's stream to be connected.
#[derive(Debug)]
pub(crate) struct Ends {
    table: Mutex<Table>,
    close_stdin: watch::Sender<bool>,
}

#[derive(Debug)]
struct Table {
    stdin: End<pipe::Sender>,
    stdout: End<pipe::Receiver>,
    stderr: End<pipe::Receiver>,
    terminal: End<oneshot::Receiver<Arc<Pty>>>,
    /// Where the terminal goes once it is there.
    made: Option<oneshot::Sender<Arc<Pty>>>,
    pty: Option<Arc<Pty>>,
    /// Width and height, as asked for before there is a terminal.
    size: Option<(u16, u16)>,
}

#[derive(Debug)]
enum End<T> {
    Unwanted,
    Waiting(T),
    Connected,
}

/// What a connected stream is copied from or to.
#[derive(Debug)]
pub(crate) enum Claim {
    Stdin(pipe::Sender, watch::Receiver<bool>),
    Output(pipe::Receiver),
    Terminal(oneshot::Receiver<Arc<Pty>>),
}

impl Ends {
    /// Makes the pipes that are wanted, and gives the process's ends of them.
    pub(crate) fn open(wanted: &Stdio) -> Result<(Self, Streams)> {
        if wanted.terminal && (wanted.stdin || wanted.stdout || wanted.stderr) {
            return Err(invalid("stdio has a terminal and pipes; it can have one or the other"));
        }
        let mut streams = Streams::default();
        let mut table = Table::default();
        let pipes =
            || -> io::Result<(OwnedFd, OwnedFd)> { Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?) };
        if wanted.stdin {
            let (read, write) = pipes().doing(|| "making a pipe for stdin".into())?;
            let end = pipe::Sender::from_owned_fd(write);
            table.stdin = End::Waiting(end.doing(|| "preparing the pipe for stdin".into())?);
            streams.stdin = Some(read);
        }
        let outputs = [
            (wanted.stdout, &mut table.stdout, &mut streams.stdout),
            (wanted.stderr, &mut table.stderr, &mut streams.stderr),
        ];
        for (_, end, stream) in outputs.into_iter().filter(|(wanted, ..)| *wanted) {
            let (read, write) = pipes().doing(|| "making a pipe for output".into())?;
            let reader = pipe::Receiver::from_owned_fd(read);
            *end = End::Waiting(reader.doing(|| "preparing the pipe for output".into())?);
            *stream = Some(write);
        }
        if wanted.terminal {
            let (sender, receiver) = oneshot::channel();
            table.terminal = End::Waiting(receiver);
            table.made = Some(sender);
        }
        let ends = Self { table: Mutex::new(table), close_stdin: watch::Sender::new(false) };
        Ok((ends, streams))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the end that belongs to the stream `name`. Once.
    pub(crate) fn claim(&self, name: &str) -> Result<Claim> {
        let mut table = self.table();
        match name {
            "stdin" => {
                let closing = self.close_stdin.subscribe();
                table.stdin.take(name).map(|end| Claim::Stdin(end, closing))
            }
            "stdout" => table.stdout.take(name).map(Claim::Output),
            "stderr" => table.stderr.take(name).map(Claim::Output),
            "terminal" => table.terminal.take(name).map(Claim::Terminal),
            other => {
                Err(invalid(format!("{other:?} is none of stdin, stdout, stderr and terminal")))
            }
        }
    }

    /// A stream that is wanted and not connected.
    pub(crate) fn unconnected(&self) -> Option<&'static str> {
        let table = self.table();
        let waiting = [
            ("stdin", table.stdin.waits()),
            ("stdout", table.stdout.waits()),
            ("stderr", table.stderr.waits()),
            ("terminal", table.terminal.waits()),
        ];
        waiting.into_iter().find(|(_, waits)| *waits).map(|(name, _)| name)
    }

    /// No more than what was sent reaches the process.
    pub(crate) fn close_stdin(&self) {
        self.close_stdin.send_replace(true);
        let mut table = self.table();
        if table.stdin.waits() {
            table.stdin = End::Connected;
        }
    }

    /// The terminal is there.
    pub(crate) fn set_pty(&self, master: OwnedFd) -> Result<()> {
        let pty = Pty::new(master).map(Arc::new).doing(|| "preparing the terminal".into())?;
        let mut table = self.table();
        if let Some((width, height)) = table.size {
            pty.resize(width, height).doing(|| "sizing the terminal".into())?;
        }
        if let Some(made) = table.made.take() {
            // The stream may have ended before.
            drop(made.send(pty.clone()));
        }
        table.pty = Some(pty);
        Ok(())
    }

    /// Sets the terminal's size, or keeps it for when there is one.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let side = |side: u32, name| {
            u16::try_from(side)
                .map_err(|_| invalid(format!("terminal {name} {side} is above 65535")))
        };
        let (width, height) = (side(width, "width")?, side(height, "height")?);
        let mut table = self.table();
        if matches!(table.terminal, End::Unwanted) {
            return Err(refused("the process has no terminal"));
        }
        table.size = Some((width, height));
        match &table.pty {
            Some(pty) => pty.resize(width, height).doing(|| "sizing the terminal".into()),
            None => Ok(()),
        }
    }

    /// Whether the process gets a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        !matches!(self.table().terminal, End::Unwanted)
    }

    /// The process has ended: the terminal is left to whoever still copies from it.
    pub(crate) fn ended(&self) {
        self.table().pty = None;
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            stdin: End::Unwanted,
            stdout: End::Unwanted,
            stderr: End::Unwanted,
            terminal: End::Unwanted,
            made: None,
            pty: None,
            size: None,
        }
    }
}

impl<T> End<T> {
    fn take(&mut self, name: &str) -> Result<T> {
        match std::mem::replace(self, Self::Connected) {
            Self::Waiting(end) => Ok(end),
            Self::Connected => Err(refused(format!("{name} is connected already"))),
            Self::Unwanted => {
                *self = Self::Unwanted;
                Err(refused(format!("the process was made without {name}")))
            }
        }
    }

    fn waits(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }
}

impl Pty {
    fn new(master: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by what it is registered with, and never replaced.
        Ok(Self(unsafe { AsyncFd::register(master)? }))
    }

    fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` is what TIOCSWINSZ reads.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads what the processes wrote; 0 when the last of them is gone.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::read(fd, buffer)?)) {
                // The kernel's end-of-file of a terminal.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(done) => return done,
                Err(_) => {}
            }
        }
    }

    /// Writes all of `bytes`, as if they were typed.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(nix::unistd::write(fd, bytes)?)) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(stdin: bool, stdout: bool, terminal: bool) -> Stdio {
        Stdio { stdin, stdout, terminal, ..Stdio::default() }
    }

    #[tokio::test]
    async fn each_end_is_claimed_once() {
        let (ends, streams) = Ends::open(&wanted(true, true, false)).unwrap();
        assert!(streams.stdin.is_some() && streams.stdout.is_some() && streams.stderr.is_none());
        assert_eq!(ends.unconnected(), Some("stdin"));
        assert!(matches!(ends.claim("stdin"), Ok(Claim::Stdin(..))));
        assert_eq!(ends.unconnected(), Some("stdout"));
        assert!(matches!(ends.claim("stdout"), Ok(Claim::Output(_))));
        assert_eq!(ends.unconnected(), None);
        assert_eq!(ends.claim("stdin").unwrap_err().to_string(), "stdin is connected already");
        let error = ends.claim("stderr").unwrap_err().to_string();
        assert_eq!(error, "the process was made without stderr");
        assert!(ends.claim("stdio").is_err());
    }

    #[tokio::test]
    async fn closing_stdin_needs_no_stream() {
        let (ends, _streams) = Ends::open(&wanted(true, false, false)).unwrap();
        ends.close_stdin();
        assert_eq!(ends.unconnected(), None);
    }

    #[tokio::test]
    async fn a_terminal_comes_later_and_keeps_its_size() {
        let (ends, _streams) = Ends::open(&wanted(false, false, true)).unwrap();
        let Ok(Claim::Terminal(mut coming)) = ends.claim("terminal") else { panic!("no claim") };
        ends.resize(80, 24).unwrap();
        assert!(coming.try_recv().is_err());
        let pair = nix::pty::openpty(None, None).unwrap();
        ends.set_pty(pair.master).unwrap();
        let pty = coming.try_recv().unwrap();
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` is what TIOCGWINSZ fills.
        unsafe { libc::ioctl(pair.slave.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        assert_eq!((size.ws_col, size.ws_row), (80, 24));
        nix::unistd::write(&pair.slave, b"hi").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(pty.read(&mut buffer).await.unwrap(), 2);
        drop(pair.slave);
        assert_eq!(pty.read(&mut buffer).await.unwrap(), 0);
    }

    #[test]
    fn a_terminal_has_no_pipes() {
        assert!(Ends::open(&wanted(true, false, true)).is_err());
    }
}
