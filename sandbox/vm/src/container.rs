//! A container in the guest.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::host::Host;
use sandbox_core::sandbox::Container;
use sandbox_core::stdio::{self, Owner};
use sandbox_core::{ExecProcess, Id, Process, ProcessInfo, Resources, Result, Stats};

use crate::error::VmError;
use crate::guest::Key;
use crate::machine::Machine;
use crate::process::GuestProcess;
use crate::purge;
use crate::streams::Copying;
use crate::wire;

/// A container.
#[derive(Debug)]
pub(crate) struct VmContainer {
    pub(crate) id: Id,
    pub(crate) bundle: PathBuf,
    pub(crate) machine: Arc<Machine>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) owner: Owner,
    pub(crate) init: Arc<GuestProcess>,
    /// Disks that were plugged in for it.
    pub(crate) disks: Vec<String>,
}

impl VmContainer {
    fn is_root(&self) -> bool {
        self.machine.id == self.id.as_str()
    }

    /// The process that stands for it on the host.
    fn stands_for_it(&self) -> Vec<ProcessInfo> {
        vec![ProcessInfo { pid: self.machine.vmm.pid(), exec_id: None }]
    }

    async fn remove_from_guest(&self) -> Result<(), VmError> {
        if self.machine.ended.get().is_some() {
            return Ok(());
        }
        self.machine.guest.delete(self.id.as_str()).await?;
        let unplugged = self.machine.unplug(&self.disks).await;
        unplugged.and(self.machine.unshare(&self.id).await)
    }
}

#[async_trait]
impl Container for VmContainer {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as Arc<dyn Process>
    }

    async fn exec(&self, request: ExecProcess) -> Result<Arc<dyn Process>> {
        self.machine.check_runs()?;
        self.init.check_runs()?;
        if request.spec.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(VmError::NoArgs.into());
        }
        let spec = serde_json::to_vec(&request.spec)
            .map_err(|source| VmError::Json { what: "the process", source })?;
        let key = Key { container: self.id.to_string(), exec: Some(request.id.to_string()) };
        let opened = stdio::open(&request.stdio, &self.owner, &*self.host).await;
        let (fds, held) = opened.map_err(VmError::from)?;
        let guest = &self.machine.guest;
        guest.exec(&key, spec, wire::stdio(&request.stdio)).await.map_err(VmError::from)?;
        match Copying::connect(guest, &key, &request.stdio, fds, held).await {
            Ok(copying) => {
                let machine = Arc::clone(&self.machine);
                Ok(Arc::new(GuestProcess::new(key, machine, copying, false)))
            }
            Err(error) => {
                if let Err(left) = guest.delete_exec(&key).await {
                    log::warn!("after a failed exec: {}", sandbox_core::Error::from(left));
                }
                Err(VmError::from(error).into())
            }
        }
    }

    async fn update(&self, resources: &Resources) -> Result<()> {
        self.machine.check_runs()?;
        // The room first, then the limit that needs it.
        self.machine.change(self.id.as_str(), resources).await;
        let json = serde_json::to_vec(resources)
            .map_err(|source| VmError::Json { what: "the limits", source })?;
        Ok(self.machine.guest.update(self.id.as_str(), json).await.map_err(VmError::from)?)
    }

    async fn stats(&self) -> Result<Stats> {
        self.machine.check_runs()?;
        Ok(self.machine.guest.stats(self.id.as_str()).await.map_err(VmError::from)?)
    }

    async fn pause(&self) -> Result<()> {
        self.init.check_runs()?;
        Ok(self.machine.guest.pause(self.id.as_str()).await.map_err(VmError::from)?)
    }

    async fn resume(&self) -> Result<()> {
        self.machine.check_runs()?;
        Ok(self.machine.guest.resume(self.id.as_str()).await.map_err(VmError::from)?)
    }

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        if self.machine.ended.get().is_some() || self.init.ended().is_some() {
            return Ok(self.stands_for_it());
        }
        let listed = self.machine.guest.pids(self.id.as_str()).await.map_err(VmError::from)?;
        // containerd takes an empty list for a task that is gone, and its exit code with it.
        Ok(if listed.is_empty() { self.stands_for_it() } else { listed })
    }

    async fn checkpoint(&self, _image: PathBuf, _exit: bool) -> Result<()> {
        Err(VmError::NoCheckpoint.into())
    }

    async fn delete(&self) -> Result<()> {
        if self.is_root() {
            self.machine.stop().await?;
        } else if self.init.may_run() && self.machine.ended.get().is_none() {
            return Err(VmError::Running(self.id.to_string()).into());
        }
        let removed = self.remove_from_guest().await;
        self.machine.leave(self.id.as_str()).await;
        let purged = purge::container(&self.id, &self.bundle, &self.host).await;
        Ok(removed.and(purged)?)
    }

    async fn oom_killed(&self) -> bool {
        self.init.oom_killed()
    }
}
