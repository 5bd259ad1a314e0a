//! A running sandbox, shared by the containers in it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sandbox_core::exit::ExitCell;
use sandbox_core::host::{ExitWatch, ProcessRef};
use sandbox_netns::{Dial, PortForward};
use tokio::task::JoinHandle;

use crate::control::Control;
use crate::error::GvisorError;
use crate::group::Group;
use crate::netns::{self, SavedNetwork};

/// How long putting the network back may hold up the report of a sandbox's end.
const NETWORK: Duration = Duration::from_secs(5);

/// What a sandbox is made of.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) id: String,
    pub(crate) process: ProcessRef,
    pub(crate) control: Control,
    pub(crate) shm: Option<String>,
    pub(crate) group: Group,
}

/// A sandbox whose process was started.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its id, which is that of the container that made it.
    pub(crate) id: String,
    /// Its process.
    pub(crate) process: ProcessRef,
    /// Its control server.
    pub(crate) control: Control,
    /// The directory behind the `/dev/shm` that its containers share.
    pub(crate) shm: Option<String>,
    /// Set when the process has ended and the network is back in place.
    pub(crate) ended: ExitCell,
    /// What its containers may use together.
    pub(crate) group: Group,
    members: Mutex<BTreeSet<String>>,
    paused: AtomicBool,
    network: Arc<Mutex<Option<SavedNetwork>>>,
    /// Dropped with the sandbox: nothing is forwarded any more.
    forward: Arc<Mutex<Option<PortForward>>>,
    settling: JoinHandle<()>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.settling.abort();
    }
}

impl Pod {
    /// Takes over a sandbox, whose end `exit` tells; `ended` is set when it is settled.
    pub(crate) fn new(sandbox: Launched, exit: ExitWatch, ended: ExitCell) -> Self {
        let Launched { id, process, control, shm, group } = sandbox;
        let (network, forward) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let kept = (Arc::clone(&network), Arc::clone(&forward));
        let settling = tokio::spawn(settle(exit, kept, ended.clone()));
        let (members, paused) = (Mutex::default(), AtomicBool::new(false));
        Self {
            id,
            process,
            control,
            shm,
            ended,
            group,
            members,
            paused,
            network,
            forward,
            settling,
        }
    }

    /// Counts container `id` as one of the sandbox's.
    pub(crate) fn join(&self, id: &str) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    /// Stops counting container `id`.
    pub(crate) fn leave(&self, id: &str) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Err(e) = self.group.leave(id) {
            log::warn!("limits without container {id}: {}", sandbox_core::Error::from(e));
        }
    }

    /// The sandbox's containers.
    pub(crate) fn members(&self) -> Vec<String> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Remembers what the Pod's interfaces must get back when the sandbox has ended.
    pub(crate) fn keep_network(&self, saved: SavedNetwork) {
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
    }

    /// Has the ports of the Pod's loopback at `netns` forwarded until the sandbox has ended.
    pub(crate) async fn forward_ports(&self, netns: &Path, dial: Arc<dyn Dial>) {
        let forward = PortForward::offer(netns, dial).await;
        let mut kept = self.forward.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended meanwhile, and whoever saw it found nothing to drop.
        *kept = forward.filter(|_| self.ended.get().is_none());
    }

    /// Kills the sandbox and everything in it, and waits for the end.
    pub(crate) async fn kill(&self, deadline: Duration) -> Result<(), GvisorError> {
        if self.ended.get().is_none() {
            self.process.kill();
        }
        let ended = tokio::time::timeout(deadline, self.ended.wait()).await;
        ended.map(drop).map_err(|_| GvisorError::StillRunning {
            sandbox: self.id.clone(),
            pid: self.process.pid,
            seconds: deadline.as_secs(),
        })
    }

    /// Fails when the sandbox has ended.
    pub(crate) fn check_lives(&self) -> Result<(), GvisorError> {
        match self.ended.get() {
            Some(_) => Err(GvisorError::SandboxEnded(self.id.clone())),
            None => Ok(()),
        }
    }

    /// Fails when nothing can run in the sandbox now: it has ended, or it is paused.
    pub(crate) fn check_runs(&self) -> Result<(), GvisorError> {
        self.check_lives()?;
        if self.paused.load(Ordering::Acquire) {
            return Err(GvisorError::Paused(self.id.clone()));
        }
        Ok(())
    }

    /// Freezes all containers: gVisor has no smaller unit.
    pub(crate) async fn pause(&self) -> Result<(), GvisorError> {
        self.check_runs()?;
        self.control.pause().await?;
        self.paused.store(true, Ordering::Release);
        Ok(())
    }

    /// Thaws all containers; fine if they are not frozen.
    pub(crate) async fn resume(&self) -> Result<(), GvisorError> {
        if self.paused.load(Ordering::Acquire) {
            self.control.resume().await?;
            self.paused.store(false, Ordering::Release);
        }
        Ok(())
    }
}

/// What is kept for the time of a sandbox: the addresses to put back, and the ports' forwarder.
type Kept = (Arc<Mutex<Option<SavedNetwork>>>, Arc<Mutex<Option<PortForward>>>);

/// Waits for the sandbox's end and puts right what it leaves, before anybody hears of it.
async fn settle(exit: ExitWatch, (network, forward): Kept, ended: ExitCell) {
    let exit = exit.wait().await;
    drop(forward.lock().unwrap_or_else(PoisonError::into_inner).take());
    let saved = network.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        match tokio::time::timeout(NETWORK, netns::restore(saved)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::warn!("the Pod's addresses: {}", sandbox_core::Error::from(e)),
            Err(_) => log::warn!("the Pod's addresses were not put back in time"),
        }
    }
    ended.set(exit);
}
