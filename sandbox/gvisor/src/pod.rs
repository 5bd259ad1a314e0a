//! A running sandbox, shared by the containers in it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use runsc::{Control, RunscId};
use sandbox_core::ExitCell;
use sandbox_host::{ExitWatch, ProcessRef};
use sandbox_netns::{Dial, PortForward};
use tokio::task::JoinHandle;

use crate::error::GvisorError;
use crate::group::Group;
use crate::netns::{self, SavedNetwork};

/// How long putting the network back may delay the report of a sandbox's exit.
const NETWORK: Duration = Duration::from_secs(5);

/// What a launch leaves.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) id: RunscId,
    pub(crate) process: ProcessRef,
    pub(crate) control: Control,
    pub(crate) shm: Option<String>,
    pub(crate) group: Group,
}

/// A sandbox whose process was started.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its id, which is that of the container it was launched with.
    pub(crate) id: RunscId,
    /// Its process.
    pub(crate) process: ProcessRef,
    /// Its control server.
    pub(crate) control: Control,
    /// The directory behind the `/dev/shm` that its containers share.
    pub(crate) shm: Option<String>,
    /// Set when the process has exited and the network is back in place.
    pub(crate) exit: ExitCell,
    /// What its containers may use together.
    pub(crate) group: Group,
    members: Mutex<BTreeSet<RunscId>>,
    paused: AtomicBool,
    kept: Arc<Kept>,
    settling: JoinHandle<()>,
}

/// What is kept while a sandbox runs.
#[derive(Debug, Default)]
struct Kept {
    /// The addresses to put back.
    network: Mutex<Option<SavedNetwork>>,
    /// Forwards ports until it is dropped.
    forward: Mutex<Option<PortForward>>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.settling.abort();
    }
}

impl Pod {
    /// Takes over a sandbox; `watch` watches its process.
    pub(crate) fn new(sandbox: Launched, watch: ExitWatch) -> Self {
        let Launched { id, process, control, shm, group } = sandbox;
        let kept = Arc::<Kept>::default();
        let exit = ExitCell::new();
        let settling = tokio::spawn(settle(watch, Arc::clone(&kept), exit.clone()));
        let members = Mutex::default();
        let paused = AtomicBool::new(false);
        Self { id, process, control, shm, exit, group, members, paused, kept, settling }
    }

    /// Counts container `id` as one of the sandbox's.
    pub(crate) fn join(&self, id: &RunscId) {
        self.members.lock().insert(id.clone());
    }

    /// Stops counting container `id`.
    pub(crate) fn leave(&self, id: &RunscId) {
        self.members.lock().remove(id);
        if let Err(e) = self.group.leave(id) {
            let error = sandbox_core::Error::from(e);
            tracing::warn!(container = %id, "limits without the container: {error}");
        }
    }

    /// The sandbox's containers.
    pub(crate) fn members(&self) -> Vec<RunscId> {
        self.members.lock().iter().cloned().collect()
    }

    /// Remembers what to put back on the Pod's interfaces when the sandbox has exited.
    pub(crate) fn keep_network(&self, saved: SavedNetwork) {
        *self.kept.network.lock() = Some(saved);
    }

    /// Forwards the ports of the Pod's loopback at `netns` until the sandbox has exited.
    pub(crate) async fn forward_ports(&self, netns: &Path, dial: Arc<dyn Dial>) {
        let forward = PortForward::offer(netns, dial).await;
        let mut kept = self.kept.forward.lock();
        // `settle` may have run meanwhile and found nothing to drop.
        *kept = forward.filter(|_| self.exit.get().is_none());
    }

    /// Kills the sandbox and everything in it, and waits until it is settled.
    pub(crate) async fn kill(&self, deadline: Duration) -> Result<(), GvisorError> {
        if self.exit.get().is_none() {
            self.process.kill();
        }
        let exited = tokio::time::timeout(deadline, self.exit.wait()).await;
        exited.map(drop).map_err(|_| GvisorError::SandboxStays {
            sandbox: self.id.to_string(),
            pid: self.process.pid,
            seconds: deadline.as_secs(),
        })
    }

    /// Fails when the sandbox has exited.
    pub(crate) fn check_lives(&self) -> Result<(), GvisorError> {
        match self.exit.get() {
            Some(_) => Err(GvisorError::SandboxExited(self.id.to_string())),
            None => Ok(()),
        }
    }

    /// Fails when nothing can run in the sandbox now: it has exited, or it is paused.
    pub(crate) fn check_runs(&self) -> Result<(), GvisorError> {
        self.check_lives()?;
        if self.paused.load(Ordering::Acquire) {
            return Err(GvisorError::Paused(self.id.to_string()));
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

/// Waits for the exit of the sandbox's process, and restores the network before it sets `exit`.
async fn settle(watch: ExitWatch, kept: Arc<Kept>, exit: ExitCell) {
    let seen = watch.wait().await;
    drop(kept.forward.lock().take());
    let saved = kept.network.lock().take();
    if let Some(saved) = saved {
        match tokio::time::timeout(NETWORK, netns::restore(saved)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("the Pod's addresses: {}", sandbox_core::Error::from(e)),
            Err(_) => tracing::warn!("the Pod's addresses were not put back in time"),
        }
    }
    exit.set(seen);
}
