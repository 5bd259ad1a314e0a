//! A running VM, shared by the containers of its Pod.

mod disks;
mod parts;
mod sizing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sandbox_core::{Error, Exit, ExitCell, Id};
use sandbox_host::cleanup::Steps;
use sandbox_netns::PortForward;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use vm_driver::{Capabilities, Vmm};
use vm_share::{SharedMount, Tree, Volume, Volumes};
use vm_volumes::PodState;

use self::disks::Disks;
pub(crate) use self::parts::Parts;
use self::sizing::Sizing;
use crate::config::VmConfig;
use crate::error::VmError;
use crate::guest::{Guest, GuestError};
use crate::size::Size;

/// A VM whose guest runs.
#[derive(Debug)]
pub(crate) struct Vm {
    /// The sandbox's id.
    pub(crate) id: Id,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) guest: Arc<Guest>,
    pub(crate) capabilities: Capabilities,
    pub(crate) sizing: Sizing,
    pub(crate) disks: Disks,
    /// Locked while a volume is mounted, since two containers' mounts of one volume have to be the
    /// same. A mount is bounded in time by the tree, and needs neither guest nor VMM.
    volumes: tokio::sync::Mutex<Volumes>,
    /// The directory behind the Pod's `/dev/shm`, if its first container has one.
    shm: Option<PathBuf>,
    parts: Arc<Parts>,
    /// Set when all parts have been stopped.
    exited: ExitCell,
    stop_requested: Arc<Notify>,
    stop_deadline: Duration,
    watching: JoinHandle<()>,
    /// Dropped with the VM, which ends the forwarding.
    forward: Mutex<Option<PortForward>>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// A VM whose agent has answered its first call.
#[derive(Debug)]
pub(crate) struct Booted {
    /// The sandbox's id.
    pub(crate) id: Id,
    pub(crate) parts: Parts,
    pub(crate) guest: Guest,
    pub(crate) capabilities: Capabilities,
    /// UID the VMM runs as; `None` means root.
    pub(crate) user: Option<u32>,
    pub(crate) size: Size,
    /// The size it can grow to.
    pub(crate) most: Size,
    /// The directory behind the Pod's `/dev/shm`.
    pub(crate) shm: Option<PathBuf>,
    pub(crate) forward: Option<PortForward>,
}

impl Vm {
    /// Takes over a VM.
    pub(crate) fn new(booted: Booted, config: &Arc<VmConfig>) -> Self {
        let Booted { id, parts, guest, capabilities, user, size, most, shm, forward } = booted;
        let parts = Arc::new(parts);
        let vmm = Arc::clone(&parts.vmm);
        let guest = Arc::new(guest);
        let exited = ExitCell::new();
        let stop_requested = Arc::new(Notify::new());
        let watch = watch(Arc::clone(&parts), Arc::clone(&stop_requested), exited.clone());
        let grower = sizing::Grower {
            vmm: Arc::clone(&vmm),
            guest: Arc::clone(&guest),
            capabilities,
            config: Arc::clone(config),
            size,
            most,
        };
        Self {
            id,
            guest,
            capabilities,
            sizing: Sizing::new(grower),
            disks: Disks::new(Arc::clone(&vmm), parts.tree.clone(), user),
            vmm,
            volumes: tokio::sync::Mutex::default(),
            shm,
            parts,
            exited,
            stop_requested,
            stop_deadline: config.timeouts.stop(),
            watching: tokio::spawn(watch),
            forward: Mutex::new(forward),
        }
    }

    /// The Pod's shared directory.
    pub(crate) fn tree(&self) -> &Tree {
        &self.parts.tree
    }

    /// What another container of the Pod finds.
    pub(crate) fn pod(&self) -> PodState {
        let pids = vec![self.vmm.pid()];
        PodState { opened: true, shm: self.shm.clone(), pids, disks: self.disks.ids() }
    }

    /// Puts a container's root file system and volumes below the share. Returns the volumes that the
    /// Pod had already: the name that was requested, and the one that it has.
    pub(crate) async fn share(
        &self,
        id: &Id,
        rootfs: Vec<SharedMount>,
        wanted: Vec<Volume>,
    ) -> Result<Vec<(String, String)>, VmError> {
        self.tree().mount(id, rootfs).await.map_err(Error::from)?;
        let mut volumes = self.volumes.lock().await;
        let mut renamed = Vec::new();
        for volume in wanted {
            let requested = volume.name.clone();
            let name = volumes.acquire(self.tree(), id, volume).await.map_err(Error::from)?;
            if name != requested {
                renamed.push((requested, name));
            }
        }
        Ok(renamed)
    }

    /// Removes container `id` from the guest, and the disks and volumes that no other one uses.
    /// Idempotent; in a VM that has exited they are gone, or go with its directory.
    pub(crate) async fn remove(&self, id: &Id) -> Result<(), VmError> {
        self.sizing.forget(id.as_str());
        self.remove_from_guest(id.as_str()).await?;
        if self.has_exited() {
            return Ok(());
        }
        let mut steps = Steps::<VmError>::default();
        steps.take(self.disks.release(id).await);
        let released = self.volumes.lock().await.release(self.tree(), id);
        steps.take(released.map_err(Error::from));
        steps.result()
    }

    /// Kills the processes of container `id` and removes it from the guest. Idempotent.
    pub(crate) async fn remove_from_guest(&self, id: &str) -> Result<(), VmError> {
        if self.has_exited() {
            return Ok(());
        }
        match self.guest.delete(id).await {
            // The VM exits at this moment.
            Err(GuestError::Gone) => self.stopped().await,
            deleted => Ok(deleted?),
        }
    }

    /// Fails when nothing can run in it any more.
    pub(crate) fn check_runs(&self) -> Result<(), VmError> {
        if self.has_exited() { Err(VmError::Exited(self.id.to_string())) } else { Ok(()) }
    }

    /// Whether it, and all that runs for it, has exited.
    pub(crate) fn has_exited(&self) -> bool {
        self.exited.get().is_some()
    }

    /// Resolves when it, and all that runs for it, has exited; at once if it already has.
    pub(crate) async fn exited(&self) -> Exit {
        self.exited.wait().await
    }

    /// Has it stopped, without waiting for that.
    pub(crate) fn request_stop(&self) {
        drop(self.forward.lock().take());
        self.stop_requested.notify_one();
    }

    /// Stops it with all that runs for it. Idempotent.
    pub(crate) async fn stop(&self) -> Result<(), VmError> {
        self.request_stop();
        self.stopped().await
    }

    /// Waits until a VM that is being stopped has exited, for a bounded time.
    pub(crate) async fn stopped(&self) -> Result<(), VmError> {
        let exited = tokio::time::timeout(self.stop_deadline, self.exited.wait()).await;
        exited.map(drop).map_err(|_| VmError::NotStopped {
            sandbox: self.id.to_string(),
            seconds: self.stop_deadline.as_secs(),
        })
    }
}

/// Waits until the VM exits or is to be stopped, and stops all its parts before `exited` is set.
async fn watch(parts: Arc<Parts>, stop_requested: Arc<Notify>, exited: ExitCell) {
    let exit = tokio::select! {
        exit = parts.broken() => exit,
        () = stop_requested.notified() => Exit::now(Exit::KILLED),
    };
    if let Err(error) = parts.stop().await {
        tracing::error!("stopping the VM: {}", Error::from(error));
    }
    exited.set(exit);
}
