//! A Pod's sandbox: a VM, and the containers that are made in it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::stdio::{self, Owner};
use sandbox_core::{CreateContainer, Created, Error, Exit, Result, Sandbox};
use sandbox_host::{HookError, Hooks};
use sandbox_netns::Held;
use vm_driver::Capabilities;
use vm_volumes::{self as volumes, ContainerPlan, Facts, PodState};

use crate::container::{self, VmContainer};
use crate::environment::Environment;
use crate::error::VmError;
use crate::guest::Key;
use crate::process::{GuestProcess, Part, PreparedInit};
use crate::purge;
use crate::record::Record;
use crate::size::Limit;
use crate::streams::Copying;
use crate::vm::Vm;

/// A sandbox whose VM runs.
#[derive(Debug)]
pub(crate) struct VmSandbox {
    environment: Arc<Environment>,
    vm: Arc<Vm>,
    /// The directory with the sandbox's record.
    bundle: PathBuf,
    /// The Pod's network namespace, if it was made here.
    _netns: Option<Held>,
}

/// What the container `request` needs on the host and in the guest, in a Pod as `pod` describes
/// it.
pub(crate) async fn plan(
    request: &CreateContainer,
    pod: &PodState,
    capabilities: &Capabilities,
) -> Result<ContainerPlan> {
    if request.checkpoint.is_some() {
        return Err(VmError::NoCheckpoint.into());
    }
    let spec = request.bundle.json();
    let bundle = request.bundle.path();
    let rootfs = &request.rootfs;
    let facts = Facts::gather(spec, bundle, rootfs).await?;
    let id = &request.id;
    let request = volumes::Request { id, bundle, spec, rootfs, pod, capabilities };
    let plan = volumes::plan(&request, &facts)?;
    for left in &plan.left_out {
        tracing::warn!(container = %id, "{left}");
    }
    Ok(plan)
}

/// The hooks of the container `request` that run on the host.
pub(crate) fn hooks(request: &CreateContainer) -> Result<Hooks, HookError> {
    Hooks::read(request.bundle.json(), request.id.as_str(), request.bundle.path())
}

impl VmSandbox {
    /// The sandbox in `vm`, with its record in the directory `bundle`.
    pub(crate) fn new(
        environment: Arc<Environment>,
        vm: Arc<Vm>,
        bundle: PathBuf,
        netns: Option<Held>,
    ) -> Self {
        Self { environment, vm, bundle, _netns: netns }
    }

    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Makes a container by its `plan`. What a failure leaves is the caller's to remove.
    pub(crate) async fn make(
        &self,
        request: &CreateContainer,
        plan: ContainerPlan,
        part: Part,
    ) -> Result<Created, VmError> {
        if part != Part::Pause {
            let linux = request.bundle.spec().linux().as_ref();
            let limit = Limit::of(linux.and_then(|linux| linux.resources().as_ref()));
            self.vm.sizing.fit(request.id.as_str(), limit).await;
        }
        let host = &self.environment.host;
        let namespace = self.environment.namespace.clone();
        let owner = Owner { namespace, container: request.id.clone() };
        let (fds, held) = stdio::open(&request.stdio, &owner, &**host).await?;
        self.make_in_guest(request, plan).await?;
        let key = Key { container: request.id.to_string(), exec: None };
        let guest = &self.vm.guest;
        let streams = Copying::connect(guest, &key, &request.stdio, fds, held).await?;
        let process = GuestProcess::new(key, Arc::clone(&self.vm), streams, part);
        let init = PreparedInit { process, hooks: hooks(request)?, host: Arc::clone(host) };
        let container = VmContainer {
            id: request.id.clone(),
            bundle: request.bundle.path().to_owned(),
            vm: Arc::clone(&self.vm),
            host: Arc::clone(host),
            owner,
            part,
        };
        Ok(Created { container: Arc::new(container), init: Box::new(init) })
    }

    /// Mounts and plugs in what the container needs, and has the guest make it.
    async fn make_in_guest(
        &self,
        request: &CreateContainer,
        mut plan: ContainerPlan,
    ) -> Result<(), VmError> {
        let shared = std::mem::take(&mut plan.shared);
        let wanted = std::mem::take(&mut plan.volumes);
        let renamed = self.vm.share(&request.id, shared, wanted).await?;
        volumes::rename(&mut plan.spec, &renamed);
        self.vm.disks.plug(&request.id, &plan.disks).await?;
        Ok(self.vm.guest.create(request.id.as_str(), plan, &request.stdio).await?)
    }

    /// Makes a container beside those that are there. What a failure leaves is the caller's to
    /// remove.
    async fn join(&self, request: &CreateContainer) -> Result<Created> {
        let plan = plan(request, &self.vm.pod(), &self.vm.capabilities).await?;
        let sandbox = self.vm.id.to_string();
        let dir = self.vm.tree().dir().to_owned();
        let hooks = hooks(request)?;
        let processes = Vec::new();
        let record = Record { sandbox, dir, processes, network: None, hooks: !hooks.is_empty() };
        record.store(request.bundle.path()).map_err(VmError::from)?;
        hooks.create(&*self.environment.host, self.vm.vmm.pid()).await?;
        Ok(self.make(request, plan, Part::Member).await?)
    }

    /// Stops the VM and removes what the sandbox has on the host.
    pub(crate) async fn discard(&self) -> Result<(), VmError> {
        self.vm.stop().await?;
        purge::container(&self.vm.id, &self.bundle, &self.environment.host).await
    }
}

#[async_trait]
impl Sandbox for VmSandbox {
    async fn create(&self, request: CreateContainer) -> Result<Created> {
        self.vm.check_runs()?;
        let created = self.join(&request).await;
        if created.is_err() {
            let bundle = request.bundle.path();
            let host = &self.environment.host;
            if let Err(left) = container::release(&self.vm, host, &request.id, bundle).await {
                tracing::warn!(container = %request.id, "after a failed create: {}", Error::from(left));
            }
        }
        created
    }

    async fn stop(&self) -> Result<()> {
        Ok(self.discard().await?)
    }

    async fn exited(&self) -> Exit {
        self.vm.exited().await
    }
}
