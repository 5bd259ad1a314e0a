//! A process in the guest: a container's first one or an exec.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::libc;
use sandbox_core::stdio::{self, Owner};
use sandbox_core::{
    Early, Ended, Error, Exit, Killer, Kind, Prepared, Result, Running, StdioPaths, TerminalSize,
};
use sandbox_host::{Hooks, Host};
use tokio::sync::OnceCell;

use crate::error::VmError;
use crate::guest::{GuestError, Key};
use crate::streams::Copying;
use crate::vm::Vm;

/// Pause before a wait that the guest's connection broke off is tried again.
const WAIT_AGAIN: Duration = Duration::from_millis(200);

/// The part that a container plays in its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// CRI's pause container: the VM stops when its process exits.
    Pause,
    /// A workload that the VM was launched with: the VM stops when it is deleted.
    First,
    /// A container that joined.
    Member,
}

/// A process of the guest whose streams are connected.
#[derive(Debug)]
pub(crate) struct GuestProcess {
    key: Key,
    vm: Arc<Vm>,
    streams: Copying,
    /// The part of the container whose first process it is; an exec is a member's like.
    part: Part,
    ended: OnceCell<Ended>,
}

/// A container's first process. The guest has made it, and it waits for its start.
#[derive(Debug)]
pub(crate) struct PreparedInit {
    pub(crate) process: GuestProcess,
    pub(crate) hooks: Hooks,
    pub(crate) host: Arc<dyn Host>,
}

/// An exec. Nothing of it is in the guest, and its streams are not open.
#[derive(Debug)]
pub(crate) struct PreparedExec {
    pub(crate) key: Key,
    /// The process as the OCI runtime specification has it, in JSON.
    pub(crate) spec: Vec<u8>,
    pub(crate) stdio: StdioPaths,
    pub(crate) vm: Arc<Vm>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) owner: Owner,
}

impl GuestProcess {
    pub(crate) fn new(key: Key, vm: Arc<Vm>, streams: Copying, part: Part) -> Self {
        Self { key, vm, streams, part, ended: OnceCell::new() }
    }

    /// Runs it.
    async fn run(&self, early: Early) -> Result<(), VmError> {
        self.vm.check_runs()?;
        if early.stdin_closed {
            self.streams.close_stdin();
        }
        self.vm.guest.start(&self.key).await?;
        if let Some(size) = early.size {
            // Not before the start: the guest then loses the terminal's output.
            if let Err(error) = self.vm.guest.resize(&self.key, size).await {
                tracing::debug!("{}: {}", self.key, Error::from(error));
            }
        }
        Ok(())
    }

    /// Removes a first process that did not start.
    async fn abandon(&self) {
        let removed = match self.part {
            Part::Pause => self.vm.stop().await,
            Part::First | Part::Member => {
                match self.vm.remove_from_guest(&self.key.container).await {
                    Err(VmError::Guest(error @ GuestError::Deadline { .. })) => {
                        self.stop_stalled(error).await
                    }
                    removed => removed,
                }
            }
        };
        if let Err(error) = removed {
            tracing::warn!("abandoning {}: {}", self.key, Error::from(error));
        }
        self.streams.finish().await;
    }

    /// Stops the VM of a guest that does not carry out a kill: nothing else ends its processes.
    async fn stop_stalled(&self, error: GuestError) -> Result<(), VmError> {
        tracing::error!("{}: {}; stopping the VM", self.key, Error::from(error));
        self.vm.stop().await
    }

    /// Waits for its exit, and releases what it holds in the guest and on the host.
    async fn exit(&self) -> Ended {
        let ended = tokio::select! {
            biased;
            ended = exit_in_guest(&self.vm, &self.key) => ended,
            exit = self.vm.exited() => {
                // Killed with its VM, however the VMM itself exited.
                Ended { exit: Exit { status: Exit::KILLED, ..exit }, oom_killed: false }
            }
        };
        if self.part == Part::Pause {
            // The Pod's network is removed when the exit is known.
            if let Err(error) = self.vm.stop().await {
                tracing::error!("after the exit of {}: {}", self.key, Error::from(error));
            }
        }
        remove_exec(&self.vm, &self.key).await;
        ended
    }
}

/// Waits until a running guest reports the exit of `key`. One that was stopped never does.
async fn exit_in_guest(vm: &Vm, key: &Key) -> Ended {
    loop {
        match vm.guest.wait(key).await {
            Ok(ended) => return ended,
            // It was removed with its container.
            Err(GuestError::Refused { kind: Kind::NotFound, .. }) => return Ended::killed(),
            Err(error) => {
                tracing::debug!("{key}: {}", Error::from(error));
                tokio::time::sleep(WAIT_AGAIN).await;
            }
        }
    }
}

/// Removes an exec that does not run from the guest.
async fn remove_exec(vm: &Vm, key: &Key) {
    if key.exec.is_none() || vm.has_exited() {
        return;
    }
    match vm.guest.delete_exec(key).await {
        Ok(()) | Err(GuestError::Refused { kind: Kind::NotFound, .. }) => {}
        Err(error) => tracing::debug!("{key}: {}", Error::from(error)),
    }
}

#[async_trait]
impl Prepared for PreparedInit {
    async fn start(self: Box<Self>, early: Early) -> Result<Arc<dyn Running>> {
        let Self { process, hooks, host } = *self;
        match process.run(early).await {
            Ok(()) => {
                hooks.started(&*host, process.vm.vmm.pid()).await;
                Ok(Arc::new(process))
            }
            Err(error) => {
                process.abandon().await;
                Err(error.into())
            }
        }
    }

    async fn abandon(self: Box<Self>) {
        self.process.abandon().await;
    }

    fn killer(&self) -> Option<Killer> {
        let vm = Arc::clone(&self.process.vm);
        (self.process.part != Part::Member).then(|| Arc::new(move || vm.request_stop()) as Killer)
    }
}

impl PreparedExec {
    /// Has the guest make it, and connects its streams.
    async fn make(self) -> Result<GuestProcess, VmError> {
        let Self { key, spec, stdio, vm, host, owner } = self;
        vm.check_runs()?;
        let (fds, held) = stdio::open(&stdio, &owner, &*host).await?;
        let guest = &vm.guest;
        if let Err(error) = guest.exec(&key, spec, &stdio).await {
            if let GuestError::Deadline { .. } = error {
                // The guest may have made it.
                remove_exec(&vm, &key).await;
            }
            return Err(error.into());
        }
        match Copying::connect(guest, &key, &stdio, fds, held).await {
            Ok(streams) => Ok(GuestProcess::new(key, vm, streams, Part::Member)),
            Err(error) => {
                remove_exec(&vm, &key).await;
                Err(error.into())
            }
        }
    }
}

#[async_trait]
impl Prepared for PreparedExec {
    async fn start(self: Box<Self>, early: Early) -> Result<Arc<dyn Running>> {
        let process = self.make().await?;
        match process.run(early).await {
            Ok(()) => Ok(Arc::new(process)),
            Err(error) => {
                if let VmError::Guest(GuestError::Deadline { .. }) = error {
                    // It may run by now.
                    let killed = process.vm.guest.signal(&process.key, libc::SIGKILL, false).await;
                    if let Err(error) = killed {
                        tracing::debug!("{}: {}", process.key, Error::from(error));
                    }
                }
                remove_exec(&process.vm, &process.key).await;
                Err(error.into())
            }
        }
    }

    async fn abandon(self: Box<Self>) {}
}

#[async_trait]
impl Running for GuestProcess {
    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        let exited = || VmError::ProcessExited { what: self.key.to_string() };
        if self.ended.initialized() || self.vm.has_exited() {
            return Err(exited().into());
        }
        if self.part == Part::Pause && signal == libc::SIGKILL {
            // The whole Pod goes with it, with or without an answer of the guest.
            return Ok(self.vm.stop().await?);
        }
        match self.vm.guest.signal(&self.key, signal, all).await {
            Ok(()) => Ok(()),
            Err(GuestError::Gone) => {
                // The VM exits at this moment.
                self.vm.stopped().await?;
                Err(exited().into())
            }
            Err(error @ GuestError::Deadline { .. }) if signal == libc::SIGKILL => {
                Ok(self.stop_stalled(error).await?)
            }
            Err(error) => Err(VmError::from(error).into()),
        }
    }

    async fn wait(&self) -> Ended {
        *self.ended.get_or_init(|| self.exit()).await
    }

    async fn drain(&self) {
        self.streams.finish().await;
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        Ok(self.vm.guest.resize(&self.key, size).await.map_err(VmError::from)?)
    }

    async fn close_stdin(&self) -> Result<()> {
        self.streams.close_stdin();
        Ok(())
    }
}
