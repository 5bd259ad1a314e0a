//! The launch of a sandbox: its VM, then its first container.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use sandbox_core::{Created, Error, Kind, LaunchSandbox, Launched, NetworkNamespace, Result};
use sandbox_netns::Held;
use vm_network::Network;
use vm_volumes::{ContainerPlan, GuestPlan, PodState};

use crate::boot::{self, Plan};
use crate::environment::Environment;
use crate::error::VmError;
use crate::process::Part;
use crate::purge;
use crate::record::Record;
use crate::sandbox::{self, VmSandbox};
use crate::size::{self, HostSize, Limit, Size};
use crate::vm::{Parts, Vm};

/// Launches a sandbox. When it fails, nothing of it is left.
pub(crate) async fn launch(
    environment: Arc<Environment>,
    request: LaunchSandbox,
) -> Result<Launched> {
    let netns = network_namespace(&request.network)?;
    let mut plan = match &request.first {
        Some(first) => {
            let capabilities = environment.driver.capabilities();
            Some(sandbox::plan(&first.container, &PodState::default(), &capabilities).await?)
        }
        None => None,
    };
    let guest = plan.as_mut().and_then(|plan| plan.guest.take()).unwrap_or_default();
    let (netns, held) = match create_hooks(&environment, &request, netns).await {
        Ok(network) => network,
        Err(error) => {
            purge_failed(&environment, &request, "hook").await;
            return Err(error.into());
        }
    };
    let vm = boot(&environment, &request, netns, guest).await?;
    let sandbox = VmSandbox::new(environment, Arc::new(vm), request.bundle.clone(), held);
    match first_container(&sandbox, &request, plan).await {
        Ok(first) => Ok(Launched { sandbox: Arc::new(sandbox), first }),
        Err(error) => {
            if let Err(left) = sandbox.discard().await {
                tracing::warn!(sandbox = %request.id, "after a failed launch: {}", Error::from(left));
            }
            Err(error.into())
        }
    }
}

/// The Pod's network namespace; `None` when the sandbox has a new one with nothing in it.
fn network_namespace(network: &NetworkNamespace) -> Result<Option<PathBuf>> {
    match network {
        NetworkNamespace::Path(path) => Ok(Some(path.clone())),
        NetworkNamespace::New => Ok(None),
        NetworkNamespace::Host => Err(Error::new(
            Kind::InvalidArgument,
            "the Pod uses the host's network, which a machine of its own cannot join; take \
             hostNetwork out of the Pod, or run it under another RuntimeClass",
        )),
    }
}

/// Removes what a sandbox left behind whose `step` failed.
async fn purge_failed(environment: &Environment, request: &LaunchSandbox, step: &str) {
    let purged = purge::container(&request.id, &request.bundle, &environment.host).await;
    if let Err(left) = purged {
        tracing::warn!(sandbox = %request.id, "after a failed {step}: {}", Error::from(left));
    }
}

/// The record of a sandbox of which nothing runs yet.
fn record(environment: &Environment, request: &LaunchSandbox) -> Result<Record, VmError> {
    let hooks = match &request.first {
        Some(first) => !sandbox::hooks(&first.container)?.is_empty(),
        None => false,
    };
    let sandbox = request.id.to_string();
    let dir = environment.vm_dir(&request.id);
    Ok(Record { sandbox, dir, processes: Vec::new(), network: None, hooks })
}

/// Runs the hooks that the first container's creation has, some of which make the Pod's network:
/// before the interfaces in its namespace `netns` are read. Returns that namespace and, where it
/// was made for the hooks, what keeps it.
async fn create_hooks(
    environment: &Environment,
    request: &LaunchSandbox,
    netns: Option<PathBuf>,
) -> Result<(Option<PathBuf>, Option<Held>), VmError> {
    let Some(first) = &request.first else { return Ok((netns, None)) };
    let hooks = sandbox::hooks(&first.container)?;
    if !hooks.has_create() {
        return Ok((netns, None));
    }
    let (path, held) = match netns {
        Some(path) => (path.clone(), Held::join(&path).map_err(Error::from)?),
        None => {
            let held = Held::fresh().map_err(Error::from)?;
            (held.path(), held)
        }
    };
    // Before anything runs: with it a clean-up after a crash runs the hooks that undo these.
    record(environment, request)?.store(&request.bundle)?;
    hooks.create(&*environment.host, held.pid()).await?;
    Ok((Some(path), Some(held)))
}

/// Boots the sandbox's VM.
async fn boot(
    environment: &Environment,
    request: &LaunchSandbox,
    netns: Option<PathBuf>,
    guest: GuestPlan,
) -> Result<Vm, VmError> {
    let plan = plan_vm(environment, request, netns, guest);
    let record = record(environment, request)?;
    // Before anything runs, for a clean-up after a crash.
    record.store(&request.bundle)?;
    let note = |parts: &Parts| {
        let network = parts.network.as_ref().map(Network::record);
        let processes = parts.processes();
        Ok(Record { processes, network, ..record.clone() }.store(&request.bundle)?)
    };
    match boot::boot(&plan, environment, note).await {
        Ok(booted) => Ok(Vm::new(booted, &environment.config)),
        Err(error) => {
            purge_failed(environment, request, "boot").await;
            Err(error)
        }
    }
}

fn plan_vm(
    environment: &Environment,
    request: &LaunchSandbox,
    netns: Option<PathBuf>,
    guest: GuestPlan,
) -> Plan {
    let config = &environment.config;
    let dir = environment.vm_dir(&request.id);
    let limit = Limit::of_pod(&request.annotations, request.resources.as_ref());
    let size = size::plan(config, limit);
    let most = size::largest(config, HostSize::read());
    Plan {
        id: request.id.clone(),
        user: (!config.monitor_as_root).then(|| vm_driver::vm_user(&dir)),
        dir,
        netns,
        cgroup: request.cgroups_path.clone(),
        guest,
        size,
        most: Size { vcpus: most.vcpus.max(size.vcpus), memory: most.memory.max(size.memory) },
    }
}

/// Makes the first container, if the request has one.
async fn first_container(
    sandbox: &VmSandbox,
    request: &LaunchSandbox,
    plan: Option<ContainerPlan>,
) -> Result<Option<Created>, VmError> {
    let (Some(first), Some(plan)) = (&request.first, plan) else { return Ok(None) };
    let part = if first.pause { Part::Pause } else { Part::First };
    let guest = &sandbox.vm().guest;
    let begun = Instant::now();
    let waited = guest.waited();
    let created = sandbox.make(&first.container, plan, part).await?;
    tracing::info!(
        "boot: first container {:.1} ms (the guest's part {:.1} ms)",
        begun.elapsed().as_secs_f64() * 1e3,
        (guest.waited() - waited).as_secs_f64() * 1e3,
    );
    Ok(Some(created))
}
