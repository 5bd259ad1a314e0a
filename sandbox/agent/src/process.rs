//! A process of a container: its first one or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::agent::Stdio;
use tokio::sync::{oneshot, watch};

use crate::cgroup::Cgroup;
use crate::door::Streams;
use crate::error::{Doing, Result, invalid, missing, refused};
use crate::launch::Launched;
use crate::reaper::{Ended, Reaper};
use crate::stdio::{Claim, Ends};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at_ns: i64,
    pub(crate) oom_killed: bool,
}

/// A process, from before it is started until it is deleted.
#[derive(Debug)]
pub(crate) struct Process {
    /// For messages.
    name: String,
    ends: Ends,
    state: Mutex<State>,
    fate: watch::Sender<Fate>,
}

/// What those who wait are told.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Open,
    Ended(Exit),
    Gone,
}

#[derive(Debug)]
enum State {
    /// An exec that nobody has started; what it will be connected to.
    Planned(Streams),
    /// A container's process that waits for its start, or an exec on its way.
    Created(Option<u32>),
    Running(u32),
    Ended,
    /// Deleted, or never made.
    Gone,
}

impl Process {
    /// An exec, or a first process before it is there.
    pub(crate) fn planned(name: String, stdio: &Stdio) -> Result<Self> {
        let (ends, streams) = Ends::open(stdio)?;
        let state = Mutex::new(State::Planned(streams));
        Ok(Self { name, ends, state, fate: watch::Sender::new(Fate::Open) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the descriptors for the process that is now to be made.
    pub(crate) fn begin(&self) -> Result<Streams> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Created(None)) {
            State::Planned(streams) => Ok(streams),
            other => {
                *state = other;
                Err(refused(format!("{} is started already", self.name)))
            }
        }
    }

    /// It could not be made, or is deleted before it ever ran.
    pub(crate) fn gone(&self) {
        let mut state = self.state();
        if !matches!(*state, State::Ended) {
            *state = State::Gone;
            self.fate.send_replace(Fate::Gone);
        }
    }

    /// It is there. `running` tells an exec from a first process that waits for its start.
    pub(crate) fn made(
        self: &Arc<Self>,
        launched: Launched,
        group: Cgroup,
        running: bool,
    ) -> Result<()> {
        let pid = launched.pid;
        *self.state() = if running { State::Running(pid) } else { State::Created(Some(pid)) };
        let sized = launched.terminal.map_or(Ok(()), |terminal| self.ends.set_pty(terminal));
        tokio::spawn(self.clone().until_end(launched.ended, group));
        sized
    }

    async fn until_end(self: Arc<Self>, ended: oneshot::Receiver<Ended>, group: Cgroup) {
        // The reaper drops no sender: it lives as long as the agent.
        let Ok(ended) = ended.await else { return };
        *self.state() = State::Ended;
        self.ends.ended();
        let oom_killed = group.oom_killed();
        let exit = Exit { status: ended.status, at_ns: ended.at_ns, oom_killed };
        self.fate.send_replace(Fate::Ended(exit));
    }

    /// What a first process needs before it may run.
    pub(crate) fn may_start(&self) -> Result<Option<u32>> {
        if let Some(stream) = self.ends.unconnected() {
            return Err(refused(format!("{}: {stream} is not connected", self.name)));
        }
        match &*self.state() {
            State::Planned(_) => Ok(None),
            State::Created(Some(pid)) => Ok(Some(*pid)),
            State::Created(None) | State::Running(_) => {
                Err(refused(format!("{} is started already", self.name)))
            }
            State::Ended => Err(refused(format!("{} has ended", self.name))),
            State::Gone => Err(missing(format!("{} could not be made", self.name))),
        }
    }

    /// A first process was told to run.
    pub(crate) fn started(&self) {
        let mut state = self.state();
        if let State::Created(Some(pid)) = *state {
            *state = State::Running(pid);
        }
    }

    /// Its number, while it is there.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &*self.state() {
            State::Created(Some(pid)) | State::Running(pid) => Some(*pid),
            _ => None,
        }
    }

    /// Whether it runs: made, started and not ended.
    pub(crate) fn is_running(&self) -> bool {
        matches!(&*self.state(), State::Running(_))
    }

    /// Whether it may be deleted: it never ran or has ended.
    pub(crate) fn may_be_deleted(&self) -> bool {
        matches!(&*self.state(), State::Planned(_) | State::Ended | State::Gone)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, reaper: &Reaper, signal: i32) -> Result<()> {
        let ended = || missing(format!("{} has ended", self.name));
        let pid = match &*self.state() {
            State::Planned(_) | State::Created(None) => {
                return Err(refused(format!("{} is not started", self.name)));
            }
            State::Created(Some(pid)) | State::Running(pid) => *pid,
            State::Ended | State::Gone => return Err(ended()),
        };
        let sent = reaper.signal(pid, signal);
        match sent.doing(|| format!("sending signal {signal} to {}", self.name))? {
            true => Ok(()),
            false => Err(ended()),
        }
    }

    /// Resolves when it has ended, at once if it already has.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut fates = self.fate.subscribe();
        let fate = fates.wait_for(|fate| !matches!(fate, Fate::Open)).await.map(|fate| *fate);
        match fate {
            Ok(Fate::Ended(exit)) => Ok(exit),
            Ok(Fate::Gone | Fate::Open) | Err(_) => Err(missing(format!("{} is gone", self.name))),
        }
    }

    /// Takes the end for a stream of the host.
    pub(crate) fn claim(&self, stream: &str) -> Result<Claim> {
        if !matches!(&*self.state(), State::Planned(_) | State::Created(Some(_))) {
            return Err(refused(format!("{} takes no stream any more", self.name)));
        }
        self.ends.claim(stream)
    }

    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.ends.resize(width, height)
    }

    pub(crate) fn wants_terminal(&self) -> bool {
        self.ends.has_terminal()
    }

    pub(crate) fn close_stdin(&self) {
        self.ends.close_stdin();
    }
}

/// A signal's number, when there is such a signal. Real-time ones are among them.
pub(crate) fn signal(number: u32) -> Result<i32> {
    let known = i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
    known.ok_or_else(|| invalid(format!("there is no signal {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_exec_starts_once_and_with_its_streams() {
        let stdio = Stdio { stdout: true, ..Stdio::default() };
        let process = Arc::new(Process::planned("exec \"e\"".into(), &stdio).unwrap());
        let error = process.may_start().unwrap_err().to_string();
        assert_eq!(error, "exec \"e\": stdout is not connected");
        process.claim("stdout").unwrap();
        assert_eq!(process.may_start().unwrap(), None);
        process.begin().unwrap();
        assert_eq!(process.begin().unwrap_err().to_string(), "exec \"e\" is started already");
        assert!(process.claim("stdout").is_err());
        let (ended, receiver) = oneshot::channel();
        let launched = Launched { pid: 7, ended: receiver, terminal: None };
        process.made(launched, Cgroup::of("absent"), true).unwrap();
        assert_eq!(process.pid(), Some(7));
        assert!(!process.may_be_deleted());
        ended.send(Ended { status: 3, at_ns: 5 }).unwrap();
        let exit = process.wait().await.unwrap();
        assert_eq!(exit, Exit { status: 3, at_ns: 5, oom_killed: false });
        assert!(process.may_be_deleted());
        let error = process.signal(&Reaper::default(), libc::SIGTERM).unwrap_err().to_string();
        assert_eq!(error, "exec \"e\" has ended");
    }

    #[test]
    fn signals_by_number() {
        assert_eq!(signal(9).unwrap(), libc::SIGKILL);
        assert_eq!(signal(0).unwrap_err().to_string(), "there is no signal 0");
        assert!(signal(4000).is_err());
    }
}
