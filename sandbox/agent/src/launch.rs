//! The agent's side of the runtime process ([`crate::runtime`]): starts it and reads its report.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_api::GUEST_ROOT;
use futures::future::{Either, select};
use nix::cmsg_space;
use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Doing, Error, Kind, Result, internal, late};
use crate::reaper::{ExitStatus, Reaper};
use crate::runtime::VERB;
use crate::stdio::ChildStdio;

/// How long the runtime process may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long the rest of its report may take to arrive once it has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// Upper bound in bytes on a report.
const REPORT_MAX: u64 = 64 * 1024;

/// A call of the runtime process.
#[derive(Debug)]
pub(crate) struct RuntimeCall {
    /// The agent's own binary.
    pub(crate) program: PathBuf,
    /// `create` or `exec`, and its arguments without the console.
    pub(crate) arguments: Vec<String>,
    pub(crate) streams: ChildStdio,
    /// Whether the new process gets a terminal.
    pub(crate) terminal: bool,
}

/// A new process of a container.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: u32,
    pub(crate) exited: oneshot::Receiver<ExitStatus>,
    /// The master side of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Runs the runtime process until it has created a container's process.
pub(crate) async fn launch(reaper: &Reaper, call: RuntimeCall) -> Result<Launched> {
    let console = if call.terminal { Some(Console::listen()?) } else { None };
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(|| "creating a pipe".into())?;
    let report = pipe::Receiver::from_owned_fd(read).doing(|| "preparing a pipe".into())?;
    let expecting = reaper.expect();
    let (runtime, exited) = {
        let mut command = runtime_command(&call.program, call.streams, write.as_fd());
        command.arg(VERB).arg(write.as_raw_fd().to_string()).args(&call.arguments);
        command.arg(console.as_ref().map_or(Path::new(""), |console| &console.path));
        reaper.spawn(&mut command).doing(|| format!("starting {}", call.program.display()))?
    };
    drop(write);
    let pid = match read_report(report, exited).await {
        Ok(pid) => pid,
        Err(error) => {
            // It may hang; if it has exited this does nothing.
            let _ = reaper.signal(runtime, libc::SIGKILL);
            return Err(error);
        }
    };
    let exited = expecting.watch(pid);
    let terminal = console.map(|console| receive_fd(&console.listener)).transpose();
    let terminal = terminal.doing(|| "receiving the process's terminal".into())?;
    Ok(Launched { pid, exited, terminal })
}

/// A command that runs this program again with an empty environment and inherits `report`.
#[expect(clippy::disallowed_methods, reason = "the agent's processes are all started from here")]
fn runtime_command(program: &Path, streams: ChildStdio, report: BorrowedFd<'_>) -> Command {
    let stdio = |stream: Option<OwnedFd>| stream.map_or_else(Stdio::null, Stdio::from);
    let mut command = Command::new(program);
    command.env_clear().current_dir("/");
    command.stdin(stdio(streams.stdin)).stdout(stdio(streams.stdout)).stderr(stdio(streams.stderr));
    let report = report.as_raw_fd();
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; the
    // caller keeps `report` open until the process is spawned.
    unsafe {
        command.pre_exec(move || {
            let done = libc::fcntl(report, libc::F_SETFD, 0);
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    command
}

/// Reads the report up to the line with the new process's PID or an error.
async fn read_report(
    report: pipe::Receiver,
    mut exited: oneshot::Receiver<ExitStatus>,
) -> Result<u32> {
    let deadline = Instant::now() + TIMEOUT;
    let mut report = report.take(REPORT_MAX);
    let mut unread = Vec::new();
    let mut logs = Vec::new();
    let mut status = None;
    loop {
        let mut buffer = [0; 4096];
        let read = std::pin::pin!(report.read(&mut buffer));
        // The pipe stays open after the runtime process is done: a container's init process that
        // waits for its start has inherited it. So its exit counts as well.
        let next = match status {
            None => timeout_at(deadline, select(read, &mut exited)).await.ok(),
            // What it wrote before it exited is in the pipe.
            Some(_) => {
                let read = timeout(DRAIN_TIMEOUT, read).await;
                read.ok().map(|read| Either::Left((read, &mut exited)))
            }
        };
        let count = match next {
            Some(Either::Left((read, _))) => {
                read.doing(|| "reading the runtime process's report".into())?
            }
            Some(Either::Right((exit, _))) => {
                status = Some(exit.map_or(0, |exit| exit.status));
                continue;
            }
            None if status.is_none() => {
                let seconds = TIMEOUT.as_secs();
                return Err(late(format!("the runtime process is not done after {seconds} s")));
            }
            None => 0,
        };
        if count == 0 {
            return Err(failure(&without_result(status), &logs));
        }
        unread.extend_from_slice(&buffer[..count]);
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if let Some(result) = parse_line(&line, &mut logs) {
                return result;
            }
        }
    }
}

fn without_result(status: Option<u32>) -> String {
    match status {
        Some(status) => {
            format!("the runtime process exited with status {status} and reported no result")
        }
        None => "the runtime process closed its report without a result".into(),
    }
}

/// The result that a line carries; `None` for a log message, which is added to `logs`.
fn parse_line(line: &[u8], logs: &mut Vec<String>) -> Option<Result<u32>> {
    let message: Value = match serde_json::from_slice(line) {
        Ok(message) => message,
        Err(error) => {
            return Some(Err(internal(format!("the runtime process's report: {error}"))));
        }
    };
    if let Some(log) = message["log"].as_str() {
        logs.push(log.to_owned());
        return None;
    }
    if let Some(error) = message["error"].as_str() {
        return Some(Err(failure(error, logs)));
    }
    let pid = message["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let pid = pid.filter(|pid| *pid > 1);
    Some(pid.ok_or_else(|| internal(format!("the runtime process reports no PID: {message}"))))
}

/// Each process that an error passes through logs it again, ever less precisely.
const LOGS_MAX: usize = 2;

/// The error with the messages that were logged first: they are closest to its cause.
fn failure(error: &str, logs: &[String]) -> Error {
    let mut text = error.trim_end_matches('\0').to_owned();
    for log in logs.iter().take(LOGS_MAX) {
        if !text.contains(log.as_str()) {
            text.push_str("; ");
            text.push_str(log);
        }
    }
    Error::new(classify(&text), text)
}

/// Distinguishes the caller's mistakes from failures by libcontainer's error texts.
fn classify(text: &str) -> Kind {
    let mistakes = [
        "not found in $PATH",
        "does not have correct permissions",
        "unknown mount option",
        "unsupported mount option",
        "no arguments provided to execute",
    ];
    let by_caller = mistakes.iter().any(|mistake| text.contains(mistake));
    if by_caller { Kind::InvalidArgument } else { Kind::Internal }
}

/// The console socket, on which a new process sends its terminal.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// Listens on a socket with a short name: a socket's path is bounded, and IDs are long.
    fn listen() -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = Path::new(GUEST_ROOT).join(format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let doing = || format!("listening on {}", path.display());
        let listener = UnixListener::bind(&path).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        Ok(Self { path, listener })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Receives the descriptor that a process has sent. It was sent before the runtime process
/// reported, so this does not wait.
fn receive_fd(console: &UnixListener) -> io::Result<OwnedFd> {
    let (connection, _) = console.accept()?;
    connection.set_nonblocking(true)?;
    let mut space = cmsg_space!([i32; 1]);
    let mut text = [0; 64];
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just put these descriptors into this process; nothing
            // else uses them.
            let owned = descriptors.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
            if let Some(terminal) = owned.collect::<Vec<_>>().into_iter().next() {
                return Ok(terminal);
            }
        }
    }
    Err(io::Error::other("the message carries no descriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_includes_the_first_logs() {
        let mut logs = Vec::new();
        assert!(parse_line(br#"{"log":"mounting /x: EPERM"}"#, &mut logs).is_none());
        let failed = parse_line(br#"{"error":"failed to prepare rootfs"}"#, &mut logs).unwrap();
        let error = failed.unwrap_err();
        assert_eq!(error.to_string(), "failed to prepare rootfs; mounting /x: EPERM");
        assert_eq!(error.kind(), Kind::Internal);
    }

    #[test]
    fn a_missing_program_is_the_callers_mistake() {
        let error = failure("exec process failed: executable 'x' not found in $PATH", &[]);
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }

    #[test]
    fn only_a_pid_above_1_is_a_process() {
        let mut logs = Vec::new();
        assert_eq!(parse_line(br#"{"pid":12}"#, &mut logs).unwrap().unwrap(), 12);
        for bad in [&br#"{"pid":1}"#[..], b"{}", b"x"] {
            assert!(parse_line(bad, &mut logs).unwrap().is_err());
        }
    }
}
