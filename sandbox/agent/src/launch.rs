//! The agent's side of the helper: starts it and hears what it made.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
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

use crate::door::{self, Streams};
use crate::error::{Doing, Error, Kind, Result, internal, late};
use crate::helper::VERB;
use crate::reaper::{Ended, Reaper};

/// How long the helper may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long its last words may take to be read once it has ended.
const REST: Duration = Duration::from_millis(100);

/// It never tells more.
const REPORT_MAX: u64 = 64 * 1024;

/// What to call the helper for.
#[derive(Debug)]
pub(crate) struct Job {
    /// The helper's program: this one.
    pub(crate) program: PathBuf,
    /// `create` or `exec`, and its arguments without the console.
    pub(crate) arguments: Vec<String>,
    pub(crate) streams: Streams,
    /// Whether the process gets a terminal.
    pub(crate) terminal: bool,
}

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: u32,
    pub(crate) ended: oneshot::Receiver<Ended>,
    pub(crate) terminal: Option<OwnedFd>,
}

/// Runs the helper.
pub(crate) async fn launch(reaper: &Reaper, job: Job) -> Result<Launched> {
    let console = if job.terminal { Some(Console::listen()?) } else { None };
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(|| "making a pipe".into())?;
    let report = pipe::Receiver::from_owned_fd(read).doing(|| "preparing a pipe".into())?;
    let expecting = reaper.expect();
    let (helper, ended) = {
        let mut command = door::again(&job.program, job.streams, write.as_fd());
        command.arg(VERB).arg(write.as_raw_fd().to_string()).args(&job.arguments);
        command.arg(console.as_ref().map_or(Path::new(""), |console| &console.path));
        reaper.spawn(&mut command).doing(|| format!("starting {}", job.program.display()))?
    };
    drop(write);
    let pid = match hear(report, ended).await {
        Ok(pid) => pid,
        Err(error) => {
            // It may hang; when it has ended nothing happens.
            let _ = reaper.signal(helper, libc::SIGKILL);
            return Err(error);
        }
    };
    let ended = expecting.watch(pid);
    let terminal = console.map(|console| receive(&console.listener)).transpose();
    let terminal = terminal.doing(|| "receiving the process's terminal".into())?;
    Ok(Launched { pid, ended, terminal })
}

/// Reads until the helper has said its last word.
async fn hear(report: pipe::Receiver, mut ended: oneshot::Receiver<Ended>) -> Result<u32> {
    let until = Instant::now() + PATIENCE;
    let mut report = report.take(REPORT_MAX);
    let mut heard = Vec::new();
    let mut logs = Vec::new();
    let mut status = None;
    loop {
        let mut buffer = [0; 4096];
        let read = std::pin::pin!(report.read(&mut buffer));
        // A container's process that waits for its start holds the pipe open: it is the
        // helper's end that counts.
        let next = match status {
            None => timeout_at(until, select(read, &mut ended)).await.ok(),
            // What it said before it ended is there at once.
            Some(_) => timeout(REST, read).await.ok().map(|read| Either::Left((read, &mut ended))),
        };
        let count = match next {
            Some(Either::Left((read, _))) => read.doing(|| "reading the helper's report".into())?,
            Some(Either::Right((how, _))) => {
                status = Some(how.map_or(0, |ended| ended.status));
                continue;
            }
            None if status.is_none() => {
                return Err(late(format!("the helper is not done after {} s", PATIENCE.as_secs())));
            }
            None => 0,
        };
        if count == 0 {
            return Err(failure(&silent(status), &logs));
        }
        heard.extend_from_slice(&buffer[..count]);
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = heard.drain(..=end).collect();
            if let Some(done) = word(&line, &mut logs) {
                return done;
            }
        }
    }
}

fn silent(status: Option<u32>) -> String {
    match status {
        Some(status) => format!("the helper ended with status {status} and without a word"),
        None => "the helper closed its report without a word".into(),
    }
}

/// What one line says; `None` when more is to come.
fn word(line: &[u8], logs: &mut Vec<String>) -> Option<Result<u32>> {
    let said: Value = match serde_json::from_slice(line) {
        Ok(said) => said,
        Err(error) => return Some(Err(internal(format!("the helper's report: {error}")))),
    };
    if let Some(log) = said["log"].as_str() {
        logs.push(log.to_owned());
        return None;
    }
    if let Some(error) = said["error"].as_str() {
        return Some(Err(failure(error, logs)));
    }
    let pid = said["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 1);
    Some(pid.ok_or_else(|| internal(format!("the helper reports no process: {said}"))))
}

/// Each process on an error's way logs it again, ever less precisely.
const LOGS_MAX: usize = 2;

/// The error with what was logged first on the way to it: that is closest to its cause.
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

/// The caller's mistakes among what libcontainer says.
fn classify(text: &str) -> Kind {
    let callers = [
        "not found in $PATH",
        "does not have correct permissions",
        "unknown mount option",
        "unsupported mount option",
        "no arguments provided to execute",
    ];
    let by_caller = callers.iter().any(|said| text.contains(said));
    if by_caller { Kind::InvalidArgument } else { Kind::Internal }
}

/// Where to hear of a process's terminal.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// A socket with a short name: its path is bounded, ids are long.
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

/// The descriptor that a process has sent. It was sent before the helper was done, so nothing
/// is waited for.
fn receive(console: &UnixListener) -> io::Result<OwnedFd> {
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
            // else knows them.
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
    fn logs_make_an_error_whole() {
        let mut logs = Vec::new();
        assert!(word(br#"{"log":"mounting /x: EPERM"}"#, &mut logs).is_none());
        let failed = word(br#"{"error":"failed to prepare rootfs"}"#, &mut logs).unwrap();
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
    fn only_a_number_is_a_process() {
        let mut logs = Vec::new();
        assert_eq!(word(br#"{"pid":12}"#, &mut logs).unwrap().unwrap(), 12);
        for bad in [&br#"{"pid":1}"#[..], b"{}", b"x"] {
            assert!(word(bad, &mut logs).unwrap().is_err());
        }
    }
}
