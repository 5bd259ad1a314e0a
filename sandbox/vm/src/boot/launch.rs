//! Everything of a machine that comes before its guest's first instruction, made side by side.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::{CONTROL_PORT, SHARE_TAG};
use sandbox_core::{Error, Result};
use tokio::net::UnixListener;
use vm_driver::{Device, Share as ShareDevice, VmPlan, Vmm};
use vm_network::{self as network, GuestNetwork, Prepared};
use vm_share::{Share, Tree, Virtiofsd};

use super::Planned;
use super::timings::{Timings, timed};
use crate::backend::Means;
use crate::error::VmError;
use crate::machine::Parts;

/// The started processes, and what the guest is to be told.
pub(super) struct Launched {
    pub(super) parts: Parts,
    pub(super) told: GuestNetwork,
    pub(super) listener: UnixListener,
    pub(super) timings: Timings,
}

/// Starts the VMM and virtiofsd and makes the taps side by side, and plugs them together.
pub(super) async fn launch(planned: &Planned, means: &Means) -> Result<Launched, VmError> {
    let begun = Instant::now();
    make_dirs(planned, &means.config.root)?;
    let machine = machine(planned, means);
    let ((vmm, monitor), (share, served), (prepared, taps)) = tokio::join!(
        timed(means.driver.launch(&machine)),
        timed(serve(planned, means)),
        timed(prepare(planned.netns.as_deref())),
    );
    let sides = [monitor, served, taps];
    let (vmm, (tree, share), prepared) = match (vmm, share, prepared) {
        (Ok(vmm), Ok(served), Ok(prepared)) => (vmm, served, prepared),
        (vmm, share, prepared) => return Err(undo(vmm, share, prepared).await),
    };
    let (told, nics, network) = match prepared {
        Some(Prepared { guest, nics, network }) => (guest, nics, Some(network)),
        None => (GuestNetwork::default(), Vec::new(), None),
    };
    let tag = SHARE_TAG.to_owned();
    let device = ShareDevice { id: "share".to_owned(), tag, socket: share.socket().to_owned() };
    let parts = Parts { vmm, tree, share, network };
    let nics = nics.into_iter().map(Device::Nic);
    let devices = std::iter::once(Device::Share(device)).chain(nics);
    match plug(&*parts.vmm, devices, planned.user).await {
        Ok(listener) => {
            let launched = begun.elapsed();
            let network = Duration::ZERO;
            let (booted, connected) = (launched, launched);
            let timings = Timings { begun, sides, launched, network, booted, connected };
            Ok(Launched { parts, told, listener, timings })
        }
        Err(error) => {
            if let Err(left) = parts.stop().await {
                log::warn!("after a failed start: {}", Error::from(left));
            }
            Err(error)
        }
    }
}

/// Makes the machine's directories. A monitor that is not root comes through them, and so could
/// everybody: what is in them is its own, or root's.
fn make_dirs(planned: &Planned, root: &Path) -> Result<(), VmError> {
    let way = if planned.user.is_some() { 0o711 } else { 0o700 };
    let make = |dir: &Path, mode| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
        // Also where it was there before, or somebody's umask was stricter.
        let set = |()| std::fs::set_permissions(dir, Permissions::from_mode(mode));
        made.and_then(set).map_err(VmError::file("making", dir))
    };
    make(root, way)?;
    make(&planned.dir, way)?;
    make(&vm_share::disks_dir(&planned.dir), way)?;
    make(&monitor_dir(&planned.dir), 0o700)
}

/// Where the monitor may make files, which nobody else takes for anything.
fn monitor_dir(machine: &Path) -> PathBuf {
    machine.join("vmm")
}

/// Plugs the devices in, and listens where the agent will dial.
async fn plug(
    vmm: &dyn Vmm,
    devices: impl Iterator<Item = Device>,
    user: Option<u32>,
) -> Result<UnixListener, VmError> {
    for device in devices {
        vmm.attach(device).await?;
    }
    let mut path = vmm.vsock().as_os_str().to_owned();
    path.push(format!("_{CONTROL_PORT}"));
    let failed = VmError::file("listening for the agent on", &path);
    let listener = UnixListener::bind(&path);
    listener
        .and_then(|listener| vm_driver::chown(Path::new(&path), user).map(|()| listener))
        .map_err(failed)
}

/// Makes the Pod's shared directory and has it served.
async fn serve(planned: &Planned, means: &Means) -> Result<(Tree, Share)> {
    let (dir, host) = (&planned.dir, &*means.host);
    let program =
        Virtiofsd::find(host, means.config.virtiofsd.as_deref(), &means.config.known()).await?;
    let tree = Tree::create(Arc::clone(&means.host), dir)?;
    match Share::start(host, &program, &tree, planned.user) {
        Ok(share) => Ok((tree, share)),
        Err(error) => {
            if let Err(left) = tree.destroy() {
                log::warn!("after a failed start: {}", Error::from(left));
            }
            Err(error.into())
        }
    }
}

async fn prepare(netns: Option<&Path>) -> Result<Option<Prepared>, VmError> {
    match netns {
        Some(netns) => Ok(Some(network::prepare(netns).await.map_err(Error::from)?)),
        None => Ok(None),
    }
}

/// Takes down what did start, and gives the first fault.
async fn undo(
    vmm: Result<Arc<dyn Vmm>>,
    share: Result<(Tree, Share)>,
    prepared: Result<Option<Prepared>, VmError>,
) -> VmError {
    let mut fault: Option<VmError> = None;
    let mut left: Vec<Error> = Vec::new();
    match prepared {
        Ok(Some(prepared)) => left.extend(prepared.network.leave().await.err().map(Error::from)),
        Ok(None) => {}
        Err(error) => fault = Some(error),
    }
    match share {
        Ok((tree, share)) => {
            left.extend(share.stop().await.err().map(Error::from));
            left.extend(tree.destroy().err().map(Error::from));
        }
        Err(error) => fault = Some(error.into()),
    }
    match vmm {
        Ok(vmm) => left.extend(vmm.stop().await.err()),
        Err(error) => fault = Some(error.into()),
    }
    for error in left {
        log::warn!("after a failed start: {error}");
    }
    fault.unwrap_or_else(|| VmError::Stillborn(String::new()))
}

fn machine(planned: &Planned, means: &Means) -> VmPlan {
    let capabilities = means.driver.capabilities();
    VmPlan {
        dir: monitor_dir(&planned.dir),
        netns: planned.netns.clone(),
        kernel: means.image.kernel(),
        initramfs: means.image.initramfs(),
        cmdline: cmdline(&means.config.kernel_params, capabilities.emulated),
        vcpus: planned.size.vcpus,
        max_vcpus: planned.most.vcpus,
        memory: planned.size.memory,
        max_memory: planned.most.memory,
        shared_memory: true,
        user: planned.user,
        open: vec![vm_share::disks_dir(&planned.dir)],
        console: means.config.console.then(|| planned.dir.join("console")),
    }
}

/// The kernel's command line: quiet and quick, and a guest that panics ends at once. An emulated
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
