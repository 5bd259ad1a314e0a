//! A container in the guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::stdio::Owner;
use sandbox_core::{Container, ExecProcess, Id, Prepared, Resources, Result, Stats};
use sandbox_host::Host;
use sandbox_host::cleanup::Steps;

use crate::error::VmError;
use crate::guest::Key;
use crate::process::{Part, PreparedExec};
use crate::purge;
use crate::vm::Vm;

/// A container.
#[derive(Debug)]
pub(crate) struct VmContainer {
    pub(crate) id: Id,
    pub(crate) bundle: PathBuf,
    pub(crate) vm: Arc<Vm>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) owner: Owner,
    pub(crate) part: Part,
}

/// Removes container `id` from the guest, and what it has on the host. Idempotent; runs every step
/// even if one fails.
pub(crate) async fn release(
    vm: &Vm,
    host: &Arc<dyn Host>,
    id: &Id,
    bundle: &Path,
) -> Result<(), VmError> {
    let mut steps = Steps::<VmError>::default();
    steps.take(vm.remove(id).await);
    steps.take(purge::container(id, bundle, host).await);
    steps.result()
}

#[async_trait]
impl Container for VmContainer {
    fn pid(&self) -> u32 {
        self.vm.vmm.pid()
    }

    async fn exec(&self, request: ExecProcess) -> Result<Box<dyn Prepared>> {
        self.vm.check_runs()?;
        if request.spec.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(VmError::NoArgs.into());
        }
        let spec = serde_json::to_vec(&request.spec)
            .map_err(|source| VmError::Json { what: "the process", source })?;
        Ok(Box::new(PreparedExec {
            key: Key { container: self.id.to_string(), exec: Some(request.id.to_string()) },
            spec,
            stdio: request.stdio,
            vm: Arc::clone(&self.vm),
            host: Arc::clone(&self.host),
            owner: self.owner.clone(),
        }))
    }

    async fn update(&self, resources: &Resources) -> Result<()> {
        self.vm.check_runs()?;
        if self.part != Part::Pause {
            // The room first, then the limit that needs it.
            self.vm.sizing.update(self.id.as_str(), resources).await;
        }
        let json = serde_json::to_vec(resources)
            .map_err(|source| VmError::Json { what: "the limits", source })?;
        Ok(self.vm.guest.update(self.id.as_str(), json).await.map_err(VmError::from)?)
    }

    async fn stats(&self) -> Result<Stats> {
        self.vm.check_runs()?;
        Ok(self.vm.guest.stats(self.id.as_str()).await.map_err(VmError::from)?)
    }

    async fn pause(&self) -> Result<()> {
        self.vm.check_runs()?;
        Ok(self.vm.guest.pause(self.id.as_str()).await.map_err(VmError::from)?)
    }

    async fn resume(&self) -> Result<()> {
        self.vm.check_runs()?;
        Ok(self.vm.guest.resume(self.id.as_str()).await.map_err(VmError::from)?)
    }

    async fn checkpoint(&self, _image: PathBuf, _exit: bool) -> Result<()> {
        Err(VmError::NoCheckpoint.into())
    }

    async fn delete(&self) -> Result<()> {
        if self.part != Part::Member {
            // The sandbox goes with it.
            self.vm.stop().await?;
        }
        Ok(release(&self.vm, &self.host, &self.id, &self.bundle).await?)
    }
}
