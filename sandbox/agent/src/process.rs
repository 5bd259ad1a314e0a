//! A process of a container: its init process or an exec.

use std::sync::Arc;

use agent_api::agent::Stdio;
use agent_system::log_error;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use crate::cgroup::Cgroup;
use crate::error::{Doing, Result, internal, invalid, missing, refused};
use crate::launch::Launched;
use crate::reaper::{ExitStatus, Reaper};
use crate::stdio::{self, AgentStdio, ChildStdio, Pty, StreamEnd};

/// How a process exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 plus the signal's number.
    pub(crate) status: u32,
    /// Nanoseconds since 1970, UTC.
    pub(crate) at_ns: i64,
    pub(crate) oom_killed: bool,
}

/// A process, from before it is started until it is deleted.
#[derive(Debug)]
pub(crate) struct Process {
    /// For messages.
    name: String,
    pub(crate) has_terminal: bool,
    /// Signals the task that copies stdin. Outlives the process, whose children may still read.
    close_stdin: watch::Sender<bool>,
    state: Mutex<ProcessState>,
    /// Notified when the state becomes `Exited` or `Deleted`.
    finished: Notify,
}

/// What there is of a process; a transition moves it from one variant to the next.
#[derive(Debug)]
enum ProcessState {
    /// Not started yet.
    Planned {
        child: ChildStdio,
        agent: AgentStdio,
    },
    /// Being created, for which its ends of the streams were taken.
    Creating {
        agent: AgentStdio,
    },
    /// A container's init process that waits for its start.
    Created {
        pid: u32,
        agent: AgentStdio,
        pty: Option<Arc<Pty>>,
    },
    Running {
        pid: u32,
        pty: Option<Arc<Pty>>,
    },
    Exited(Exit),
    /// Deleted, or could not be created.
    Deleted,
}

/// A process's role in its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Waits to be started once it is created.
    Init,
    /// Runs once it is created.
    Exec,
}

impl Process {
    /// A process that is still to be created.
    pub(crate) fn planned(name: String, wanted: &Stdio) -> Result<Self> {
        let (child, agent) = stdio::open(wanted)?;
        Ok(Self {
            name,
            has_terminal: wanted.terminal,
            close_stdin: watch::Sender::new(false),
            state: Mutex::new(ProcessState::Planned { child, agent }),
            finished: Notify::new(),
        })
    }

    /// Takes the process's ends of its streams, to create it with.
    pub(crate) fn begin(&self) -> Result<ChildStdio> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, ProcessState::Deleted) {
            ProcessState::Planned { child, agent } => {
                *state = ProcessState::Creating { agent };
                Ok(child)
            }
            other => {
                *state = other;
                Err(refused(format!("{} is already started", self.name)))
            }
        }
    }

    /// Marks it as deleted, unless it has exited: it could not be created or was never started.
    pub(crate) fn delete(&self) {
        let mut state = self.state.lock();
        if !matches!(*state, ProcessState::Exited(_)) {
            *state = ProcessState::Deleted;
            self.finished.notify_waiters();
        }
    }

    /// The process was created. Follows it until it exits.
    pub(crate) fn created(
        self: &Arc<Self>,
        launched: Launched,
        cgroup: Cgroup,
        role: Role,
    ) -> Result<()> {
        let pid = launched.pid;
        let mut state = self.state.lock();
        let mut agent = match std::mem::replace(&mut *state, ProcessState::Deleted) {
            ProcessState::Creating { agent } => agent,
            other => {
                *state = other;
                return Err(internal(format!("{} is already created", self.name)));
            }
        };
        let pty = launched.terminal.map(|master| agent.set_pty(master)).transpose();
        let (pty, sized) = match pty {
            Ok(pty) => (pty, Ok(())),
            Err(error) => (None, Err(error)),
        };
        *state = match role {
            Role::Init => ProcessState::Created { pid, agent, pty },
            Role::Exec => ProcessState::Running { pid, pty },
        };
        tokio::spawn(self.clone().follow(launched.exited, cgroup, role));
        sized
    }

    async fn follow(
        self: Arc<Self>,
        exited: oneshot::Receiver<ExitStatus>,
        cgroup: Cgroup,
        role: Role,
    ) {
        // The reaper drops no sender: it lives as long as the agent.
        let Ok(ExitStatus { status, at_ns }) = exited.await else { return };
        let oom_killed = cgroup.oom_killed();
        if role == Role::Init {
            // The kernel does so in a process namespace of the container's own. In one that is
            // shared, the rest would hold the outputs open, whose end containerd waits for.
            if let Err(error) = cgroup.kill() {
                log_error(&format!("killing what {} has left: {error}", self.name));
            }
        }
        *self.state.lock() = ProcessState::Exited(Exit { status, at_ns, oom_killed });
        self.finished.notify_waiters();
    }

    /// Checks that it may start: the host has connected its streams. Returns an init process's
    /// PID, `None` for an exec.
    pub(crate) fn may_start(&self) -> Result<Option<u32>> {
        let state = self.state.lock();
        let (agent, pid) = match &*state {
            ProcessState::Planned { agent, .. } => (agent, None),
            ProcessState::Created { agent, pid, .. } => (agent, Some(*pid)),
            ProcessState::Creating { .. } | ProcessState::Running { .. } => {
                return Err(refused(format!("{} is already started", self.name)));
            }
            ProcessState::Exited(_) => return Err(refused(format!("{} has exited", self.name))),
            ProcessState::Deleted => {
                return Err(missing(format!("{} could not be created", self.name)));
            }
        };
        match agent.unconnected() {
            Some(stream) => Err(refused(format!("{}: {stream} is not connected", self.name))),
            None => Ok(pid),
        }
    }

    /// An init process was started.
    pub(crate) fn started(&self) {
        let mut state = self.state.lock();
        // It may have exited already.
        if let ProcessState::Created { pid, pty, .. } = &mut *state {
            *state = ProcessState::Running { pid: *pid, pty: pty.take() };
        }
    }

    /// Its PID, from its creation until it exits.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &*self.state.lock() {
            ProcessState::Created { pid, .. } | ProcessState::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// Whether it was started and has not exited.
    pub(crate) fn is_running(&self) -> bool {
        matches!(&*self.state.lock(), ProcessState::Running { .. })
    }

    /// Whether it can be deleted: it was never started or has exited.
    pub(crate) fn may_be_deleted(&self) -> bool {
        matches!(
            &*self.state.lock(),
            ProcessState::Planned { .. } | ProcessState::Exited(_) | ProcessState::Deleted
        )
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, reaper: &Reaper, signal: i32) -> Result<()> {
        let exited = || missing(format!("{} has exited", self.name));
        let pid = match &*self.state.lock() {
            ProcessState::Planned { .. } | ProcessState::Creating { .. } => {
                return Err(refused(format!("{} is not started", self.name)));
            }
            ProcessState::Created { pid, .. } | ProcessState::Running { pid, .. } => *pid,
            ProcessState::Exited(_) | ProcessState::Deleted => return Err(exited()),
        };
        let sent = reaper.signal(pid, signal);
        match sent.doing(|| format!("sending signal {signal} to {}", self.name))? {
            true => Ok(()),
            false => Err(exited()),
        }
    }

    /// Waits until it has exited.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        loop {
            // Created before the state is read, so that no notification is missed.
            let finished = self.finished.notified();
            match &*self.state.lock() {
                ProcessState::Exited(exit) => return Ok(*exit),
                ProcessState::Deleted => {
                    return Err(missing(format!("{} is deleted", self.name)));
                }
                _ => {}
            }
            finished.await;
        }
    }

    /// Takes the agent's end of a stream, for the host's connection to it.
    pub(crate) fn connect(&self, stream: &str) -> Result<StreamEnd> {
        match &mut *self.state.lock() {
            ProcessState::Planned { agent, .. } | ProcessState::Created { agent, .. } => {
                agent.connect(stream, self.close_stdin.subscribe())
            }
            _ => Err(refused(format!("{} takes no streams any more", self.name))),
        }
    }

    /// Resizes its terminal, or sets the size for when it is opened.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let side = |side: u32, name| {
            u16::try_from(side)
                .map_err(|_| invalid(format!("terminal {name} {side} is above 65535")))
        };
        let width = side(width, "width")?;
        let height = side(height, "height")?;
        if !self.has_terminal {
            return Err(refused("the process has no terminal"));
        }
        match &mut *self.state.lock() {
            ProcessState::Planned { agent, .. } | ProcessState::Creating { agent } => {
                agent.resize(width, height);
                Ok(())
            }
            ProcessState::Created { pty: Some(pty), .. }
            | ProcessState::Running { pty: Some(pty), .. } => pty.resize(width, height),
            _ => Ok(()),
        }
    }

    /// Closes its stdin after the input that the host has already sent.
    pub(crate) fn close_stdin(&self) {
        self.close_stdin.send_replace(true);
        match &mut *self.state.lock() {
            ProcessState::Planned { agent, .. }
            | ProcessState::Creating { agent }
            | ProcessState::Created { agent, .. } => agent.close_stdin(),
            _ => {}
        }
    }
}

/// Checks a signal's number. Real-time signals are allowed.
pub(crate) fn signal(number: u32) -> Result<i32> {
    let known = i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
    known.ok_or_else(|| invalid(format!("there is no signal {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(stdio: Stdio) -> Arc<Process> {
        Arc::new(Process::planned("exec \"e\"".into(), &stdio).unwrap())
    }

    fn launched(pid: u32) -> (oneshot::Sender<ExitStatus>, Launched) {
        let (exit, exited) = oneshot::channel();
        (exit, Launched { pid, exited, terminal: None })
    }

    #[tokio::test]
    async fn an_exec_starts_once_and_with_its_streams() {
        let process = planned(Stdio { stdout: true, ..Stdio::default() });
        let error = process.may_start().unwrap_err().to_string();
        assert_eq!(error, "exec \"e\": stdout is not connected");
        process.connect("stdout").unwrap();
        assert_eq!(process.may_start().unwrap(), None);
        process.begin().unwrap();
        assert_eq!(process.begin().unwrap_err().to_string(), "exec \"e\" is already started");
        assert!(process.connect("stdout").is_err());
        let (exit, launched) = launched(7);
        process.created(launched, Cgroup::of("absent"), Role::Exec).unwrap();
        assert_eq!(process.pid(), Some(7));
        assert!(!process.may_be_deleted());
        exit.send(ExitStatus { status: 3, at_ns: 5 }).unwrap();
        let exit = process.wait().await.unwrap();
        assert_eq!(exit, Exit { status: 3, at_ns: 5, oom_killed: false });
        assert!(process.may_be_deleted());
        let error = process.signal(&Reaper::default(), libc::SIGTERM).unwrap_err().to_string();
        assert_eq!(error, "exec \"e\" has exited");
    }

    #[tokio::test]
    async fn an_init_process_waits_for_its_start() {
        let process = planned(Stdio { stdin: true, ..Stdio::default() });
        process.begin().unwrap();
        let (exit, launched) = launched(7);
        process.created(launched, Cgroup::of("absent"), Role::Init).unwrap();
        let error = process.may_start().unwrap_err().to_string();
        assert_eq!(error, "exec \"e\": stdin is not connected");
        process.close_stdin();
        assert_eq!(process.may_start().unwrap(), Some(7));
        assert!(!process.is_running());
        process.started();
        assert!(process.is_running());
        assert_eq!(process.resize(80, 24).unwrap_err().to_string(), "the process has no terminal");
        drop(exit);
    }

    #[tokio::test]
    async fn deleting_ends_a_wait_and_keeps_an_exit() {
        let process = planned(Stdio::default());
        let waiting = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        tokio::task::yield_now().await;
        process.delete();
        let error = waiting.await.unwrap().unwrap_err().to_string();
        assert_eq!(error, "exec \"e\" is deleted");

        let process = planned(Stdio::default());
        process.begin().unwrap();
        let (exit, launched) = launched(7);
        process.created(launched, Cgroup::of("absent"), Role::Exec).unwrap();
        exit.send(ExitStatus { status: 0, at_ns: 5 }).unwrap();
        let exit = process.wait().await.unwrap();
        process.delete();
        assert_eq!(process.wait().await.unwrap(), exit);
    }

    #[test]
    fn signals_by_number() {
        assert_eq!(signal(9).unwrap(), libc::SIGKILL);
        assert_eq!(signal(0).unwrap_err().to_string(), "there is no signal 0");
        assert!(signal(4000).is_err());
    }
}
