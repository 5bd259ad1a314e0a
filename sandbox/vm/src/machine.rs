//! A running machine, shared by the containers of its Pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sandbox_core::cleanup::Steps;
use sandbox_core::exit::ExitCell;
use sandbox_core::host::ProcessRef;
use sandbox_core::{Error, Exit, Id};
use sandbox_netns::PortForward;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use vm_driver::{Capabilities, Device, Disk, Vmm};
use vm_network::Network;
use vm_share::{Share, SharedMount, Tree, Volume, Volumes};
use vm_volumes::PodState;

use crate::config::VmConfig;
use crate::error::VmError;
use crate::guest::Guest;
use crate::size::{Demand, Limit, Size};

/// Everything that lives for a machine and goes with it.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) tree: Tree,
    pub(crate) share: Share,
    pub(crate) network: Option<Network>,
}

impl Parts {
    /// Takes everything down, whatever fails on the way.
    pub(crate) async fn stop(&self) -> Result<(), VmError> {
        let mut steps = Steps::<VmError>::default();
        steps.take(self.vmm.stop().await);
        steps.take(self.share.stop().await.map_err(Error::from));
        if let Some(network) = &self.network {
            steps.take(network.leave().await.map_err(Error::from));
        }
        steps.result()
    }

    /// Every process that lives for the machine.
    pub(crate) fn processes(&self) -> Vec<ProcessRef> {
        let mut all = self.vmm.processes();
        all.extend(self.share.processes());
        all
    }

    /// Resolves when a process that the machine cannot live without has ended.
    pub(crate) async fn broken(&self) -> Exit {
        tokio::select! {
            exit = self.vmm.exited() => exit,
            exit = self.share.exited() => {
                let (status, said) = (exit.status, self.share.log_tail());
                log::error!("virtiofsd has ended with status {status}, and the Pod with it: {said}");
                exit
            }
        }
    }
}

/// A machine whose guest runs.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The sandbox's id, which is that of the container that made it.
    pub(crate) id: String,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) guest: Guest,
    pub(crate) capabilities: Capabilities,
    /// Whom its monitor runs as, if not root.
    user: Option<u32>,
    /// Set when everything of it has been taken down.
    pub(crate) ended: ExitCell,
    parts: Arc<Parts>,
    stopping: Arc<Notify>,
    deadline: Duration,
    settling: JoinHandle<()>,
    config: Arc<VmConfig>,
    sizing: tokio::sync::Mutex<Sizing>,
    /// How many containers use each disk.
    disks: tokio::sync::Mutex<BTreeMap<String, usize>>,
    volumes: tokio::sync::Mutex<Volumes>,
    /// What its containers have settled, disks aside.
    pod: Mutex<PodState>,
    /// Dropped with the machine: nothing is forwarded any more.
    forward: Mutex<Option<PortForward>>,
}

/// How large it is, and why.
#[derive(Debug)]
struct Sizing {
    demand: Demand,
    now: Size,
    most: Size,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.settling.abort();
    }
}

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) id: String,
    pub(crate) parts: Parts,
    pub(crate) guest: Guest,
    pub(crate) capabilities: Capabilities,
    /// Whom its monitor runs as, if not root.
    pub(crate) user: Option<u32>,
    pub(crate) now: Size,
    pub(crate) most: Size,
    pub(crate) forward: Option<PortForward>,
}

impl Machine {
    /// Takes over a machine; `ended` is set when it, and all that lives for it, is gone.
    pub(crate) fn new(connected: Connected, config: Arc<VmConfig>, ended: ExitCell) -> Self {
        let Connected { id, parts, guest, capabilities, user, now, most, forward } = connected;
        let (parts, stopping) = (Arc::new(parts), Arc::new(Notify::new()));
        let settling =
            tokio::spawn(settle(Arc::clone(&parts), Arc::clone(&stopping), ended.clone()));
        Self {
            id,
            vmm: Arc::clone(&parts.vmm),
            guest,
            capabilities,
            user,
            ended,
            parts,
            stopping,
            deadline: config.timeouts.stop(),
            settling,
            config,
            sizing: tokio::sync::Mutex::new(Sizing { demand: Demand::default(), now, most }),
            disks: tokio::sync::Mutex::default(),
            volumes: tokio::sync::Mutex::default(),
            pod: Mutex::default(),
            forward: Mutex::new(forward),
        }
    }

    /// The Pod's shared directory.
    pub(crate) fn tree(&self) -> &Tree {
        &self.parts.tree
    }

    /// What its containers have settled for those to come.
    pub(crate) async fn pod(&self) -> PodState {
        let disks = self.disks.lock().await.keys().cloned().collect();
        let pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone();
        PodState { opened: true, pids: vec![self.vmm.pid()], disks, ..pod }
    }

    /// Remembers the directory behind the Pod's `/dev/shm`.
    pub(crate) fn keep_shm(&self, shm: Option<PathBuf>) {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner).shm = shm;
    }

    /// Puts a container's root file system and volumes below the share. Gives the volumes that the
    /// Pod had already: the name that was asked for, and the one that it has.
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
            let asked = volume.name.clone();
            let name = volumes.acquire(self.tree(), id, volume).await.map_err(Error::from)?;
            if name != asked {
                renamed.push((asked, name));
            }
        }
        Ok(renamed)
    }

    /// Takes down the volumes that no other container has.
    pub(crate) async fn unshare(&self, id: &Id) -> Result<(), VmError> {
        if self.ended.get().is_some() {
            // All of it goes with the machine.
            return Ok(());
        }
        let released = self.volumes.lock().await.release(self.tree(), id);
        Ok(released.map_err(Error::from)?)
    }

    /// Plugs in what a container needs and no other has brought. When it fails, none of them is
    /// left in.
    pub(crate) async fn plug(&self, disks: &[Disk]) -> Result<(), VmError> {
        let mut plugged = Vec::new();
        for disk in disks {
            let result = {
                let mut users = self.disks.lock().await;
                match users.get_mut(&disk.id) {
                    Some(count) => {
                        *count += 1;
                        Ok(())
                    }
                    None => {
                        let attached = self.attach(disk).await;
                        if attached.is_ok() {
                            users.insert(disk.id.clone(), 1);
                        }
                        attached
                    }
                }
            };
            if let Err(error) = result {
                self.unplug(&plugged).await?;
                return Err(error);
            }
            plugged.push(disk.id.clone());
        }
        Ok(())
    }

    /// Takes out the disks that no other container uses.
    pub(crate) async fn unplug(&self, disks: &[String]) -> Result<(), VmError> {
        let mut steps = Steps::<VmError>::default();
        for disk in disks {
            let mut users = self.disks.lock().await;
            let left = users.get(disk).map_or(0, |count| count.saturating_sub(1));
            if left > 0 {
                users.insert(disk.clone(), left);
            } else if users.remove(disk).is_some() {
                steps.take(self.vmm.detach(disk).await);
                steps.take(self.tree().remove_disk(disk).map_err(Error::from));
            }
        }
        steps.result()
    }

    /// Plugs a disk in by the path that the monitor may open.
    async fn attach(&self, disk: &Disk) -> Result<(), VmError> {
        let path = self.tree().bind_disk(disk, self.user).map_err(Error::from)?;
        let attached = self.vmm.attach(Device::Disk(Disk { path, ..disk.clone() })).await;
        if attached.is_err() {
            if let Err(left) = self.tree().remove_disk(&disk.id) {
                log::warn!("after a disk that could not be plugged in: {}", Error::from(left));
            }
        }
        Ok(attached?)
    }

    /// Fails when nothing can run in it any more.
    pub(crate) fn check_runs(&self) -> Result<(), VmError> {
        match self.ended.get() {
            Some(_) => Err(VmError::Ended(self.id.clone())),
            None => Ok(()),
        }
    }

    /// Ends the machine and everything that lives for it, and waits for that. Idempotent.
    pub(crate) async fn stop(&self) -> Result<(), VmError> {
        drop(self.forward.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.stopping.notify_one();
        self.end_seen().await
    }

    /// Waits until everything of an ending machine is gone.
    pub(crate) async fn end_seen(&self) -> Result<(), VmError> {
        let ended = tokio::time::timeout(self.deadline, self.ended.wait()).await;
        ended.map(drop).map_err(|_| VmError::StillThere {
            sandbox: self.id.clone(),
            seconds: self.deadline.as_secs(),
        })
    }

    /// Counts container `id`, and makes the machine larger where its containers call for it. What
    /// cannot be had is told in the log: the container's own limit holds all the same.
    pub(crate) async fn enter(&self, id: &str, limit: Limit) {
        let mut sizing = self.sizing.lock().await;
        sizing.demand.set(id, limit);
        let size = sizing.demand.size(&self.config, sizing.now, sizing.most);
        if size == sizing.now {
            return;
        }
        match self.grow(sizing.now, size).await {
            Ok(size) => sizing.now = size,
            Err(error) => {
                log::warn!("the machine stays at {:?}: {}", sizing.now, Error::from(error))
            }
        }
    }

    /// As [`Machine::enter`], for limits that change.
    pub(crate) async fn change(&self, id: &str, resources: &sandbox_core::Resources) {
        let limit = self.sizing.lock().await.demand.get(id).updated(resources);
        self.enter(id, limit).await;
    }

    /// Stops counting container `id`.
    pub(crate) async fn leave(&self, id: &str) {
        self.sizing.lock().await.demand.remove(id);
    }

    async fn grow(&self, now: Size, mut size: Size) -> Result<Size, VmError> {
        if !self.capabilities.grow_memory {
            size.memory = now.memory;
        }
        if !self.capabilities.grow_vcpus {
            size.vcpus = now.vcpus;
        }
        if size == now {
            let driver = self.capabilities.name;
            log::warn!(
                "a Pod of {driver} cannot grow while it runs; its size is set when it starts"
            );
            return Ok(now);
        }
        self.vmm.grow(size.vcpus, size.memory).await?;
        self.guest.online(size.vcpus).await?;
        log::info!("the machine has {} processors and {} bytes now", size.vcpus, size.memory);
        Ok(size)
    }
}

/// Waits until the machine ends or is to end, and takes down all that lives for it, before anybody
/// hears of it.
async fn settle(parts: Arc<Parts>, stopping: Arc<Notify>, ended: ExitCell) {
    let exit = tokio::select! {
        exit = parts.broken() => exit,
        () = stopping.notified() => Exit::now(Exit::KILLED),
    };
    if let Err(error) = parts.stop().await {
        log::error!("taking down the machine: {}", Error::from(error));
    }
    ended.set(exit);
}
