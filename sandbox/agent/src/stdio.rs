//! A process's standard streams: the process's ends and the agent's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use agent_api::agent::Stdio;
use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

use crate::error::{Doing, Result, invalid, refused};

/// A process's own ends of its pipes; a stream without one is `/dev/null`.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The agent's ends, until the process runs: each waits for the host to connect its stream.
#[derive(Debug, Default)]
pub(crate) struct AgentStdio {
    stdin: Stream<pipe::Sender>,
    stdout: Stream<pipe::Receiver>,
    stderr: Stream<pipe::Receiver>,
    terminal: Stream<oneshot::Receiver<Arc<Pty>>>,
    pending_pty: Option<PendingPty>,
}

/// A terminal that the process is still to open.
#[derive(Debug)]
struct PendingPty {
    /// Sends it to the connected stream.
    opened: oneshot::Sender<Arc<Pty>>,
    /// Width and height that the host asked for.
    size: Option<(u16, u16)>,
}

/// The agent's end of one stream.
#[derive(Debug, Default)]
enum Stream<T> {
    /// The process was created without it.
    #[default]
    Absent,
    Unconnected(T),
    Connected,
}

/// A stream's end for the task that copies from or to it.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The pipe, and a flag that becomes true when it is to be closed.
    Stdin(pipe::Sender, watch::Receiver<bool>),
    Output(pipe::Receiver),
    Terminal(oneshot::Receiver<Arc<Pty>>),
}

/// A terminal's master side.
#[derive(Debug)]
pub(crate) struct Pty(AsyncFd<OwnedFd>);

/// Creates the pipes that `wanted` asks for.
pub(crate) fn open(wanted: &Stdio) -> Result<(ChildStdio, AgentStdio)> {
    if wanted.terminal && (wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(invalid("stdio has a terminal and pipes; it can have one or the other"));
    }
    let mut child = ChildStdio::default();
    let mut agent = AgentStdio::default();
    if wanted.stdin {
        let (read, write) = pipe("stdin")?;
        let write = pipe::Sender::from_owned_fd(write);
        agent.stdin = Stream::Unconnected(write.doing(|| "preparing the pipe for stdin".into())?);
        child.stdin = Some(read);
    }
    if wanted.stdout {
        let (read, write) = output_pipe("stdout")?;
        agent.stdout = Stream::Unconnected(read);
        child.stdout = Some(write);
    }
    if wanted.stderr {
        let (read, write) = output_pipe("stderr")?;
        agent.stderr = Stream::Unconnected(read);
        child.stderr = Some(write);
    }
    if wanted.terminal {
        let (opened, terminal) = oneshot::channel();
        agent.terminal = Stream::Unconnected(terminal);
        agent.pending_pty = Some(PendingPty { opened, size: None });
    }
    Ok((child, agent))
}

fn pipe(name: &str) -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(|| format!("creating a pipe for {name}"))
}

fn output_pipe(name: &str) -> Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe(name)?;
    let read = pipe::Receiver::from_owned_fd(read);
    Ok((read.doing(|| format!("preparing the pipe for {name}"))?, write))
}

impl AgentStdio {
    /// Takes the agent's end of the stream `name`; each can be taken once. `closing` becomes true
    /// when stdin is to be closed.
    pub(crate) fn connect(
        &mut self,
        name: &str,
        closing: watch::Receiver<bool>,
    ) -> Result<StreamEnd> {
        match name {
            "stdin" => self.stdin.connect(name).map(|pipe| StreamEnd::Stdin(pipe, closing)),
            "stdout" => self.stdout.connect(name).map(StreamEnd::Output),
            "stderr" => self.stderr.connect(name).map(StreamEnd::Output),
            "terminal" => self.terminal.connect(name).map(StreamEnd::Terminal),
            other => Err(invalid(format!(
                "stream {other:?} is not one of stdin, stdout, stderr and terminal"
            ))),
        }
    }

    /// The first stream that the host has still to connect.
    pub(crate) fn unconnected(&self) -> Option<&'static str> {
        let streams = [
            ("stdin", self.stdin.is_unconnected()),
            ("stdout", self.stdout.is_unconnected()),
            ("stderr", self.stderr.is_unconnected()),
            ("terminal", self.terminal.is_unconnected()),
        ];
        streams.into_iter().find(|(_, unconnected)| *unconnected).map(|(name, _)| name)
    }

    /// Closes stdin if no stream has been connected to it.
    pub(crate) fn close_stdin(&mut self) {
        if self.stdin.is_unconnected() {
            self.stdin = Stream::Connected;
        }
    }

    /// Sets the size that the terminal is to be opened with.
    pub(crate) fn resize(&mut self, width: u16, height: u16) {
        if let Some(pending) = &mut self.pending_pty {
            pending.size = Some((width, height));
        }
    }

    /// Passes the opened terminal on to its stream, sized as the host asked.
    pub(crate) fn set_pty(&mut self, master: OwnedFd) -> Result<Arc<Pty>> {
        let pty = Pty::new(master).map(Arc::new).doing(|| "preparing the terminal".into())?;
        if let Some(pending) = self.pending_pty.take() {
            if let Some((width, height)) = pending.size {
                pty.resize(width, height)?;
            }
            // The host may have closed the stream.
            let _ = pending.opened.send(pty.clone());
        }
        Ok(pty)
    }
}

impl<T> Stream<T> {
    fn connect(&mut self, name: &str) -> Result<T> {
        match std::mem::replace(self, Self::Connected) {
            Self::Unconnected(end) => Ok(end),
            Self::Connected => Err(refused(format!("{name} is already connected"))),
            Self::Absent => {
                *self = Self::Absent;
                Err(refused(format!("the process was created without {name}")))
            }
        }
    }

    fn is_unconnected(&self) -> bool {
        matches!(self, Self::Unconnected(_))
    }
}

impl Pty {
    fn new(master: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by what it is registered with, and never replaced.
        Ok(Self(unsafe { AsyncFd::register(master)? }))
    }

    /// Sets the size in characters.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` is what TIOCSWINSZ reads.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        nix::errno::Errno::result(done).map(drop).doing(|| "sizing the terminal".into())
    }

    /// Reads the processes' output; 0 once the last of them has closed its terminal.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::read(fd, buffer)?)) {
                // How the kernel reports end-of-file on a terminal.
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

    fn connect(agent: &mut AgentStdio, name: &str) -> Result<StreamEnd> {
        agent.connect(name, watch::Sender::new(false).subscribe())
    }

    fn wanted(stdin: bool, stdout: bool, terminal: bool) -> Stdio {
        Stdio { stdin, stdout, terminal, ..Stdio::default() }
    }

    #[tokio::test]
    async fn each_stream_is_connected_once() {
        let (child, mut agent) = open(&wanted(true, true, false)).unwrap();
        assert!(child.stdin.is_some() && child.stdout.is_some() && child.stderr.is_none());
        assert_eq!(agent.unconnected(), Some("stdin"));
        assert!(matches!(connect(&mut agent, "stdin"), Ok(StreamEnd::Stdin(..))));
        assert_eq!(agent.unconnected(), Some("stdout"));
        assert!(matches!(connect(&mut agent, "stdout"), Ok(StreamEnd::Output(_))));
        assert_eq!(agent.unconnected(), None);
        let error = connect(&mut agent, "stdin").unwrap_err().to_string();
        assert_eq!(error, "stdin is already connected");
        let error = connect(&mut agent, "stderr").unwrap_err().to_string();
        assert_eq!(error, "the process was created without stderr");
        assert!(connect(&mut agent, "stdio").is_err());
    }

    #[tokio::test]
    async fn closing_stdin_needs_no_stream() {
        let (_child, mut agent) = open(&wanted(true, false, false)).unwrap();
        agent.close_stdin();
        assert_eq!(agent.unconnected(), None);
    }

    #[tokio::test]
    async fn a_terminal_is_opened_later_with_the_requested_size() {
        let (_child, mut agent) = open(&wanted(false, false, true)).unwrap();
        let Ok(StreamEnd::Terminal(mut opened)) = connect(&mut agent, "terminal") else {
            panic!("not a terminal")
        };
        agent.resize(80, 24);
        assert!(opened.try_recv().is_err());
        let pair = nix::pty::openpty(None, None).unwrap();
        agent.set_pty(pair.master).unwrap();
        let pty = opened.try_recv().unwrap();
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
        assert!(open(&wanted(true, false, true)).is_err());
    }
}
