//! A process in the guest: a container's first one or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::libc;
use sandbox_core::exit::ExitCell;
use sandbox_core::{Exit, Kind, Process, Result};
use tokio::task::JoinHandle;

use crate::error::VmError;
use crate::guest::{Ended, Guest, GuestError, Key};
use crate::machine::Machine;
use crate::streams::Copying;

/// How long to wait before a living guest that broke off a wait is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug)]
enum State {
    Created,
    Starting,
    Started { following: JoinHandle<()> },
}

/// A process.
#[derive(Debug)]
pub(crate) struct GuestProcess {
    key: Key,
    machine: Arc<Machine>,
    streams: Arc<Copying>,
    state: Mutex<State>,
    exit: ExitCell,
    oom: Arc<std::sync::atomic::AtomicBool>,
    /// Whether the machine goes with it: it is the Pod's sandbox container.
    holds_machine: bool,
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        if let State::Started { following } = &*self.state() {
            following.abort();
        }
        if self.key.exec.is_some() && self.machine.ended.get().is_none() {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let (machine, key) = (Arc::clone(&self.machine), self.key.clone());
                runtime.spawn(async move { forget(&machine.guest, &key).await });
            }
        }
    }
}

/// Has the guest forget an exec.
async fn forget(guest: &Guest, key: &Key) {
    match guest.delete_exec(key).await.map_err(sandbox_core::Error::from) {
        Err(error) if error.kind() != Kind::NotFound => log::debug!("{key}: {error}"),
        Ok(()) | Err(_) => {}
    }
}

impl GuestProcess {
    /// The process `key`, which the guest has made and whose streams are connected.
    pub(crate) fn new(
        key: Key,
        machine: Arc<Machine>,
        streams: Copying,
        holds_machine: bool,
    ) -> Self {
        Self {
            key,
            machine,
            streams: Arc::new(streams),
            state: Mutex::new(State::Created),
            exit: ExitCell::new(),
            oom: Arc::default(),
            holds_machine,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No change of state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn what(&self) -> String {
        self.key.to_string()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// Whether it was started and has not ended.
    pub(crate) fn may_run(&self) -> bool {
        self.ended().is_none() && !matches!(*self.state(), State::Created)
    }

    /// Whether the out-of-memory killer of the guest took it.
    pub(crate) fn oom_killed(&self) -> bool {
        self.oom.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Fails unless the process runs.
    pub(crate) fn check_runs(&self) -> Result<(), VmError> {
        if self.ended().is_some() {
            return Err(VmError::ProcessEnded { what: self.what() });
        }
        match *self.state() {
            State::Started { .. } => Ok(()),
            State::Created | State::Starting => Err(VmError::NotStarted { what: self.what() }),
        }
    }

    /// Tells the end of a started process.
    fn follow(&self) -> JoinHandle<()> {
        let (key, machine, exit) = (self.key.clone(), Arc::clone(&self.machine), self.exit.clone());
        let (streams, oom) = (Arc::clone(&self.streams), Arc::clone(&self.oom));
        let holds_machine = self.holds_machine;
        tokio::spawn(async move {
            let mut end = tokio::select! {
                biased;
                ended = told(&machine.guest, &key) => ended,
                exit = machine.ended.wait() => {
                    // The whole machine went: killed, however the VMM itself ended.
                    Ended { exit: Exit { status: Exit::KILLED, ..exit }, oom_killed: false }
                }
            };
            if holds_machine {
                // Nothing of the Pod is left when its end is told: its network is taken down next.
                if let Err(error) = machine.stop().await {
                    log::error!("after the end of {key}: {}", sandbox_core::Error::from(error));
                }
            }
            streams.finish().await;
            end.exit.at = std::time::SystemTime::now().min(end.exit.at);
            oom.store(end.oom_killed, std::sync::atomic::Ordering::Release);
            exit.set(end.exit);
        })
    }
}

/// Waits until a living guest answers. One that is gone never does: the caller watches it.
async fn told(guest: &Guest, key: &Key) -> Ended {
    loop {
        match guest.wait(key).await {
            Ok(ended) => return ended,
            Err(GuestError::Refused { kind: Kind::NotFound, .. }) => {
                // The guest has forgotten it: it was removed with its container.
                return Ended { exit: Exit::now(Exit::KILLED), oom_killed: false };
            }
            Err(error) => {
                log::debug!("{}", sandbox_core::Error::from(error));
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

#[async_trait]
impl Process for GuestProcess {
    fn pid(&self) -> u32 {
        self.machine.vmm.pid()
    }

    async fn start(&self) -> Result<()> {
        self.machine.check_runs()?;
        {
            let mut state = self.state();
            if !matches!(*state, State::Created) {
                return Err(VmError::Started { what: self.what() }.into());
            }
            *state = State::Starting;
        }
        if let Err(error) = self.machine.guest.start(&self.key).await {
            *self.state() = State::Created;
            if self.holds_machine {
                // A machine whose first container did not start is of no use to anyone.
                self.machine.stop().await?;
            }
            if self.key.exec.is_none() {
                self.exit.set(Exit::now(Exit::KILLED));
            }
            return Err(VmError::from(error).into());
        }
        let following = self.follow();
        *self.state() = State::Started { following };
        Ok(())
    }

    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        self.check_runs()?;
        if self.holds_machine && signal == libc::SIGKILL {
            // The whole Pod goes with it; that needs no answer from inside.
            return Ok(self.machine.stop().await?);
        }
        match self.machine.guest.signal(&self.key, signal, all).await {
            Ok(()) => Ok(()),
            Err(GuestError::Gone) => {
                // It ended with its machine, in this very moment.
                self.machine.end_seen().await?;
                Err(VmError::ProcessEnded { what: self.what() }.into())
            }
            Err(error @ GuestError::Deadline { .. }) if signal == libc::SIGKILL => {
                // A guest that does not even kill is of no use: a Pod that cannot be stopped from
                // inside is stopped from outside.
                log::error!("{}: {}; the machine ends", self.key, sandbox_core::Error::from(error));
                Ok(self.machine.stop().await?)
            }
            Err(error) => Err(VmError::from(error).into()),
        }
    }

    async fn wait(&self) -> Exit {
        self.exit.wait().await
    }

    async fn resize(&self, width: u16, height: u16) -> Result<()> {
        if self.ended().is_some() {
            return Err(VmError::ProcessEnded { what: self.what() }.into());
        }
        let resized = self.machine.guest.resize(&self.key, width, height).await;
        Ok(resized.map_err(VmError::from)?)
    }

    async fn close_stdin(&self) -> Result<()> {
        self.streams.close_stdin();
        Ok(())
    }
}
