//! A Pod's sandbox: its first container boots the machine, others join it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use agent_api::agent::CreateContainerRequest;
use async_trait::async_trait;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use sandbox_core::exit::ExitCell;
use sandbox_core::stdio::{self, Owner};
use sandbox_core::{Container, CreateContainer, Error, Exit, Id, Kind, Result, Role, Sandbox};
use vm_network::Network;
use vm_volumes::{self as volumes, ContainerPlan, Facts, GuestPlan, PodState};

use crate::backend::{Means, machine_dir};
use crate::boot::{self, Planned};
use crate::container::VmContainer;
use crate::error::VmError;
use crate::guest::Key;
use crate::machine::{Machine, Parts};
use crate::process::GuestProcess;
use crate::purge;
use crate::record::Record;
use crate::size::{self, HostSize, Limit, Size};
use crate::streams::Copying;
use crate::wire;

/// A sandbox, made or still to be made.
#[derive(Debug)]
pub(crate) struct VmSandbox {
    means: Arc<Means>,
    machine: OnceLock<Arc<Machine>>,
    opening: tokio::sync::Mutex<()>,
    ended: ExitCell,
    containers: Mutex<Vec<Weak<VmContainer>>>,
}

impl VmSandbox {
    pub(crate) fn new(means: Arc<Means>) -> Self {
        let (machine, opening) = (OnceLock::new(), tokio::sync::Mutex::default());
        Self { means, machine, opening, ended: ExitCell::new(), containers: Mutex::default() }
    }

    /// The machine that the container is to join; `None` if it boots it.
    fn joined(&self, id: &str, role: &Role) -> Result<Option<Arc<Machine>>, VmError> {
        let machine = self.machine.get();
        match (role, machine) {
            (Role::Sandbox, Some(machine)) => Err(VmError::SandboxExists(machine.id.clone())),
            (Role::Sandbox | Role::Standalone, None) => Ok(None),
            (Role::Member { sandbox }, Some(machine)) if machine.id == sandbox.as_str() => {
                Ok(Some(Arc::clone(machine)))
            }
            (Role::Member { sandbox }, _) => {
                let (id, sandbox) = (id.to_owned(), sandbox.to_string());
                Err(VmError::NoSandbox { id, sandbox })
            }
            // A group of containers without a Pod shares a machine all the same.
            (Role::Standalone, Some(machine)) => Ok(Some(Arc::clone(machine))),
        }
    }

    /// Boots the machine that `request` is the first container of.
    async fn open(
        &self,
        request: &CreateContainer,
        guest: Option<GuestPlan>,
    ) -> Result<Arc<Machine>, VmError> {
        let config = &self.means.config;
        let bundle = request.bundle.path().to_owned();
        let planned = self.plan_machine(request, guest.unwrap_or_default())?;
        let (sandbox, dir) = (planned.id.clone(), planned.dir.clone());
        let record = Record { sandbox, dir, processes: Vec::new(), network: None };
        // Before anything runs: whoever cleans up after a crash knows where to look.
        record.store(&bundle)?;
        let note = |parts: &Parts| {
            let network = parts.network.as_ref().map(Network::record);
            let (processes, record) = (parts.processes(), record.clone());
            Ok(Record { processes, network, ..record }.store(&bundle)?)
        };
        let connected = boot::boot(&planned, &self.means, note).await?;
        let machine = Machine::new(connected, Arc::clone(config), self.ended.clone());
        machine.keep_shm(planned.guest.shm.map(|(path, _)| path));
        // Creation of the first container is serialised, so nobody was quicker.
        Ok(Arc::clone(self.machine.get_or_init(|| Arc::new(machine))))
    }

    fn plan_machine(
        &self,
        request: &CreateContainer,
        guest: GuestPlan,
    ) -> Result<Planned, VmError> {
        let config = &self.means.config;
        let dir = machine_dir(&config.root, &self.means.namespace, &request.id);
        let size = size::plan(config, Limit::of_pod(&request.bundle));
        let most = size::largest(config, HostSize::read());
        Ok(Planned {
            id: request.id.to_string(),
            user: (!config.monitor_as_root).then(|| vm_driver::vm_user(&dir)),
            dir,
            netns: network_namespace(request.bundle.spec())?,
            cgroup: cgroup(request.bundle.spec()),
            guest,
            size,
            most: Size { vcpus: most.vcpus.max(size.vcpus), memory: most.memory.max(size.memory) },
        })
    }

    /// What the container needs, given what the Pod is by now.
    async fn plan_container(
        &self,
        request: &CreateContainer,
        machine: Option<&Machine>,
    ) -> Result<ContainerPlan> {
        let (json, bundle) = (request.bundle.json(), request.bundle.path());
        let facts = Facts::gather(json, bundle, &request.rootfs).await?;
        let (pod, capabilities) = match machine {
            Some(machine) => (machine.pod().await, machine.capabilities),
            None => (PodState::default(), self.means.driver.capabilities()),
        };
        let asked = volumes::Request {
            id: &request.id,
            bundle,
            spec: json,
            rootfs: &request.rootfs,
            pod: &pod,
            capabilities: &capabilities,
        };
        let plan = volumes::plan(&asked, &facts)?;
        for left in &plan.left_out {
            log::warn!("container {}: {left}", request.id);
        }
        Ok(plan)
    }

    /// Makes the container in `machine`. What fails half-way is taken down by the caller.
    async fn make(
        &self,
        request: &CreateContainer,
        machine: &Arc<Machine>,
        mut plan: ContainerPlan,
    ) -> Result<VmContainer, VmError> {
        let id = request.id.as_str();
        if request.role != Role::Sandbox {
            let linux = request.bundle.spec().linux().as_ref();
            let limit = Limit::of(linux.and_then(|linux| linux.resources().as_ref()));
            machine.enter(id, limit).await;
        }
        let owner =
            Owner { namespace: self.means.namespace.clone(), container: request.id.clone() };
        let host = &self.means.host;
        let (fds, held) = stdio::open(&request.stdio, &owner, &**host).await?;
        let renamed = machine.share(&request.id, plan.shared, plan.volumes).await?;
        volumes::rename(&mut plan.spec, &renamed);
        machine.plug(&plan.disks).await?;
        let disks = plan.disks.into_iter().map(|disk| disk.id).collect();
        let json = |source| VmError::Json { what: "the configuration", source };
        let message = CreateContainerRequest {
            container: id.to_owned(),
            spec: serde_json::to_vec(&plan.spec).map_err(json)?,
            rootfs: Some(wire::rootfs(plan.rootfs)).into(),
            storages: plan.storages.into_iter().map(wire::storage).collect(),
            devices: plan.devices.into_iter().map(wire::device).collect(),
            stdio: Some(wire::stdio(&request.stdio)).into(),
            shared_pid: plan.shared_pid,
            ..CreateContainerRequest::default()
        };
        machine.guest.create(&message).await?;
        let key = Key { container: id.to_owned(), exec: None };
        let copying = Copying::connect(&machine.guest, &key, &request.stdio, fds, held).await?;
        let holds_machine = request.role == Role::Sandbox;
        let init = GuestProcess::new(key, Arc::clone(machine), copying, holds_machine);
        Ok(VmContainer {
            id: request.id.clone(),
            bundle: request.bundle.path().to_owned(),
            machine: Arc::clone(machine),
            host: Arc::clone(host),
            owner,
            init: Arc::new(init),
            disks,
        })
    }

    /// The machine for the container, and the container in it.
    async fn place(
        &self,
        request: &CreateContainer,
        joins: Option<&Arc<Machine>>,
    ) -> Result<VmContainer> {
        let mut plan = self.plan_container(request, joins.map(|machine| &**machine)).await?;
        if let Some(machine) = joins {
            let (sandbox, dir) = (machine.id.clone(), machine.tree().dir().to_owned());
            let record = Record { sandbox, dir, processes: Vec::new(), network: None };
            record.store(request.bundle.path())?;
            return Ok(self.make(request, machine, plan).await?);
        }
        let machine = self.open(request, plan.guest.take()).await?;
        let (begun, waited) = (Instant::now(), machine.guest.waited());
        let made = self.make(request, &machine, plan).await?;
        log::info!(
            "boot: first container {:.1} ms (the guest's part {:.1} ms)",
            begun.elapsed().as_secs_f64() * 1e3,
            (machine.guest.waited() - waited).as_secs_f64() * 1e3,
        );
        Ok(made)
    }

    /// Takes down what a failed creation left.
    async fn discard(&self, id: &Id, bundle: &Path) {
        if let Some(machine) = self.machine.get() {
            let gone = if machine.id == id.as_str() {
                machine.stop().await
            } else if machine.ended.get().is_some() {
                Ok(())
            } else {
                machine.guest.delete(id.as_str()).await.map_err(VmError::from)
            };
            machine.leave(id.as_str()).await;
            if let Err(error) = gone.and(machine.unshare(id).await) {
                log::warn!("after a failed create: {}", Error::from(error));
            }
        }
        if let Err(error) = purge::container(id, bundle, &self.means.host).await {
            log::warn!("after a failed create: {}", Error::from(error));
        }
    }
}

#[async_trait]
impl Sandbox for VmSandbox {
    async fn create(&self, request: CreateContainer) -> Result<Arc<dyn Container>> {
        if request.checkpoint.is_some() {
            return Err(VmError::NoCheckpoint.into());
        }
        // Only the first has to be alone; those who join find the machine booted.
        let opening = match self.machine.get() {
            Some(_) => None,
            None => Some(self.opening.lock().await),
        };
        let joins = self.joined(request.id.as_str(), &request.role)?;
        if let Some(machine) = &joins {
            machine.check_runs()?;
        }
        let made = self.place(&request, joins.as_ref()).await;
        drop(opening);
        match made {
            Ok(container) => {
                let container = Arc::new(container);
                let mut known = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
                known.retain(|other| other.strong_count() > 0);
                known.push(Arc::downgrade(&container));
                Ok(container)
            }
            Err(error) => {
                self.discard(&request.id, request.bundle.path()).await;
                Err(error)
            }
        }
    }

    async fn stop(&self) -> Result<()> {
        let Some(machine) = self.machine.get() else { return Ok(()) };
        machine.stop().await?;
        let containers = {
            let mut known = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *known)
        };
        let mut result = Ok(());
        for container in containers.iter().filter_map(Weak::upgrade) {
            result = result.and(container.delete().await);
        }
        result
    }

    async fn exited(&self) -> Exit {
        self.ended.wait().await
    }
}

fn cgroup(spec: &Spec) -> Option<String> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    path.to_str().filter(|path| !path.is_empty()).map(str::to_owned)
}

/// The Pod's network namespace; `None` when the container has one of its own with nothing in it.
fn network_namespace(spec: &Spec) -> Result<Option<PathBuf>, VmError> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let network =
        namespaces.and_then(|all| all.iter().find(|ns| ns.typ() == LinuxNamespaceType::Network));
    match network {
        Some(namespace) => Ok(namespace.path().clone().filter(|path| !path.as_os_str().is_empty())),
        None => Err(Error::new(
            Kind::InvalidArgument,
            "the Pod uses the host's network, which a machine of its own cannot join; take \
             hostNetwork out of the Pod, or run it under another RuntimeClass",
        )
        .into()),
    }
}
