//! What is started on the host before a guest's first instruction: VMM, share and network, side by
//! side.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::{CONTROL_PORT, SHARE_TAG};
use sandbox_core::{Error, Result};
use tokio::net::UnixListener;
use vm_driver::{Device, Nic, Share as ShareDevice, VmPlan as VmmPlan, Vmm};
use vm_network::{self as network, GuestNetwork, Prepared};
use vm_share::{Share, Tree, Virtiofsd};

use super::plan::Plan;
use super::timings::{Timings, timed};
use crate::environment::Environment;
use crate::error::VmError;
use crate::vm::Parts;

/// The started processes, and what the boot needs of them.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) parts: Parts,
    /// The Pod's network as the guest has to set it up.
    pub(super) network: GuestNetwork,
    /// Where the agent will connect.
    pub(super) listener: UnixListener,
    pub(super) timings: Timings,
}

/// Starts the VMM and virtiofsd and makes the taps side by side, and plugs them together.
pub(super) async fn launch(plan: &Plan, environment: &Environment) -> Result<Launched, VmError> {
    let begun = Instant::now();
    make_dirs(plan, &environment.config.root)?;
    let vmm_plan = vmm_plan(plan, environment);
    let ((vmm, vmm_time), (served, share_time), (prepared, taps_time)) = tokio::join!(
        timed(environment.driver.launch(&vmm_plan)),
        timed(serve(plan, environment)),
        timed(prepare(plan.netns.as_deref())),
    );
    let (vmm, (tree, share), prepared) = all_or_none(vmm, served, prepared).await?;
    let (guest_network, nics, network) = match prepared {
        Some(Prepared { guest, nics, network }) => (guest, nics, Some(network)),
        None => (GuestNetwork::default(), Vec::new(), None),
    };
    let parts = Parts { vmm, tree, share, network };
    match plug(&parts, nics, plan.user).await {
        Ok(listener) => {
            let launched = begun.elapsed();
            let timings = Timings {
                begun,
                sides: [vmm_time, share_time, taps_time],
                launched,
                network: Duration::ZERO,
                booted: launched,
                connected: launched,
            };
            Ok(Launched { parts, network: guest_network, listener, timings })
        }
        Err(error) => {
            if let Err(left) = parts.stop().await {
                warn(left);
            }
            Err(error)
        }
    }
}

fn warn(left: impl Into<Error>) {
    tracing::warn!("after a failed start: {}", left.into());
}

/// Makes the VM's directories. A VMM that is not root has to pass through them, so every user can:
/// what is in them is accessible to the VMM or root only.
fn make_dirs(plan: &Plan, root: &Path) -> Result<(), VmError> {
    let passable = if plan.user.is_some() { 0o711 } else { 0o700 };
    let make = |dir: &Path, mode| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
        // Also where it existed, or the umask was stricter.
        let set = |()| std::fs::set_permissions(dir, Permissions::from_mode(mode));
        made.and_then(set).map_err(VmError::file("making", dir))
    };
    make(root, passable)?;
    make(&plan.dir, passable)?;
    make(&vm_share::disks_dir(&plan.dir), passable)?;
    make(&vmm_dir(&plan.dir), 0o700)
}

/// The directory in which the VMM may create files; nothing else relies on its content.
fn vmm_dir(vm: &Path) -> PathBuf {
    vm.join("vmm")
}

/// Plugs in the share and the interfaces, and listens where the agent will connect.
async fn plug(parts: &Parts, nics: Vec<Nic>, user: Option<u32>) -> Result<UnixListener, VmError> {
    let share = ShareDevice {
        id: "share".to_owned(),
        tag: SHARE_TAG.to_owned(),
        socket: parts.share.socket().to_owned(),
    };
    parts.vmm.attach(Device::Share(share)).await?;
    for nic in nics {
        parts.vmm.attach(Device::Nic(nic)).await?;
    }
    let mut path = parts.vmm.vsock().as_os_str().to_owned();
    path.push(format!("_{CONTROL_PORT}"));
    let failed = VmError::file("listening for the agent on", &path);
    let listener = UnixListener::bind(&path);
    listener
        .and_then(|listener| vm_driver::chown(Path::new(&path), user).map(|()| listener))
        .map_err(failed)
}

/// Makes the Pod's shared directory and has it served.
async fn serve(plan: &Plan, environment: &Environment) -> Result<(Tree, Share), VmError> {
    let host = &*environment.host;
    let config = &environment.config;
    let program = Virtiofsd::find(host, config.virtiofsd.as_deref(), &config.known()).await;
    let program = program.map_err(Error::from)?;
    let tree = Tree::create(Arc::clone(&environment.host), &plan.dir).map_err(Error::from)?;
    match Share::start(host, &program, &tree, plan.user) {
        Ok(share) => Ok((tree, share)),
        Err(error) => {
            if let Err(left) = tree.destroy() {
                warn(left);
            }
            Err(Error::from(error).into())
        }
    }
}

async fn prepare(netns: Option<&Path>) -> Result<Option<Prepared>, VmError> {
    match netns {
        Some(netns) => Ok(Some(network::prepare(netns).await.map_err(Error::from)?)),
        None => Ok(None),
    }
}

type Served = (Tree, Share);

/// Returns all three or, when one has failed, its error, with the others stopped.
async fn all_or_none(
    vmm: Result<Arc<dyn Vmm>>,
    served: Result<Served, VmError>,
    prepared: Result<Option<Prepared>, VmError>,
) -> Result<(Arc<dyn Vmm>, Served, Option<Prepared>), VmError> {
    match (vmm, served, prepared) {
        (Ok(vmm), Ok(served), Ok(prepared)) => Ok((vmm, served, prepared)),
        (Err(error), served, prepared) => {
            stop_share(served).await;
            leave_network(prepared).await;
            Err(error.into())
        }
        (Ok(vmm), Err(error), prepared) => {
            stop_vmm(&*vmm).await;
            leave_network(prepared).await;
            Err(error)
        }
        (Ok(vmm), Ok(served), Err(error)) => {
            stop_vmm(&*vmm).await;
            stop_share(Ok(served)).await;
            Err(error)
        }
    }
}

async fn stop_vmm(vmm: &dyn Vmm) {
    if let Err(left) = vmm.stop().await {
        warn(left);
    }
}

async fn stop_share(served: Result<Served, VmError>) {
    let stopped = match served {
        Ok((tree, share)) => share.stop().await.and_then(|()| tree.destroy()).map_err(Error::from),
        Err(error) => Err(error.into()),
    };
    if let Err(left) = stopped {
        warn(left);
    }
}

async fn leave_network(prepared: Result<Option<Prepared>, VmError>) {
    let left = match prepared {
        Ok(Some(prepared)) => prepared.network.leave().await.map_err(Error::from),
        Ok(None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(left) = left {
        warn(left);
    }
}

fn vmm_plan(plan: &Plan, environment: &Environment) -> VmmPlan {
    let capabilities = environment.driver.capabilities();
    let config = &environment.config;
    VmmPlan {
        dir: vmm_dir(&plan.dir),
        netns: plan.netns.clone(),
        kernel: environment.image.kernel(),
        initramfs: environment.image.initramfs(),
        cmdline: cmdline(&config.kernel_params, capabilities.emulated),
        vcpus: plan.size.vcpus,
        max_vcpus: plan.most.vcpus,
        memory: plan.size.memory,
        max_memory: plan.most.memory,
        shared_memory: true,
        user: plan.user,
        open: vec![vm_share::disks_dir(&plan.dir)],
        console: config.console.then(|| plan.dir.join("console")),
    }
}

/// The kernel's command line: quiet and quick, and a guest that panics exits at once. An emulated
/// processor needs no mitigations against its own speculation.
fn cmdline(own: &str, emulated: bool) -> String {
    let mut words = vec![
        own,
        "quiet panic=-1 oops=panic cryptomgr.notests no_timer_check tsc=reliable \
         random.trust_cpu=on rcupdate.rcu_expedited=1 memhp_default_state=online \
         cgroup_no_v1=all psi=1 audit=0 apparmor=0",
    ];
    if emulated {
        words.push("mitigations=off nokaslr init_on_alloc=0 noreplace-smp");
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}
