//! From nothing to a guest that answers, as a chain of values: `Planned` (what to boot), the
//! launched parts, the connected machine. What fails on the way takes down all that came before.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::agent::{self, ConfigureRequest, ConfigureResponse};
use agent_api::{CONTROL_PORT, SHARE_MOUNT, SHARE_TAG};
use sandbox_core::cgroup::Cgroup;
use sandbox_core::{Error, Result};
use sandbox_netns::PortForward;
use tokio::net::{UnixListener, UnixStream};

use crate::backend::Means;
use crate::driver::{Device, Machine as MachinePlan, Share as ShareDevice, Vmm, user};
use crate::error::VmError;
use crate::guest::Guest;
use crate::machine::{Connected, Parts};
use crate::network::{self, GuestNetwork, Prepared};
use crate::share::{Share, Tree, Virtiofsd, disks};
use crate::size::Size;
use crate::volumes::GuestPlan;

/// How much of the guest's console an error shows.
const CONSOLE_TAIL: usize = 600;

/// Bytes stirred into the guest's random pool.
const ENTROPY: usize = 64;

/// A machine to boot.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The sandbox's id.
    pub(crate) id: String,
    /// The machine's directory; made here.
    pub(crate) dir: PathBuf,
    /// The Pod's network namespace; without one the guest has its loopback alone.
    pub(crate) netns: Option<PathBuf>,
    /// The Pod's cgroup, as config.json has it.
    pub(crate) cgroup: Option<String>,
    /// Host name, sysctls and `/dev/shm`.
    pub(crate) guest: GuestPlan,
    pub(crate) size: Size,
    pub(crate) most: Size,
    /// Whom the monitor runs as, if not root.
    pub(crate) user: Option<u32>,
}

/// The started processes, and what the guest is to be told.
struct Launched {
    parts: Parts,
    told: GuestNetwork,
    listener: UnixListener,
    timings: Timings,
}

/// How long each phase took.
#[derive(Debug)]
struct Timings {
    begun: Instant,
    /// Monitor, share and taps, which are made side by side.
    sides: [Duration; 3],
    launched: Duration,
    /// The network's connection, beside the machine's start.
    network: Duration,
    booted: Duration,
    connected: Duration,
}

/// Boots `planned`. `note` is told of the parts as soon as they run, for the record, and again
/// when the network is connected.
pub(crate) async fn boot(
    planned: &Planned,
    means: &Means,
    note: impl Fn(&Parts) -> Result<(), VmError>,
) -> Result<Connected, VmError> {
    let mut launched = launch(planned, means).await?;
    let Launched { parts, told, listener, timings } = &mut launched;
    let connected = tokio::select! {
        connected = connect(planned, means, (parts, told, listener), timings, note) => connected,
        _ = parts.broken() => Err(VmError::Stillborn(stillborn(planned))),
    };
    match connected {
        Ok((guest, forward)) => Ok(Connected {
            id: planned.id.clone(),
            parts: launched.parts,
            guest,
            capabilities: means.driver.capabilities(),
            user: planned.user,
            now: planned.size,
            most: planned.most,
            forward,
        }),
        Err(error) => {
            if let Err(left) = launched.parts.stop().await {
                log::warn!("after a failed boot: {}", Error::from(left));
            }
            Err(error)
        }
    }
}

/// Starts the VMM and virtiofsd and makes the taps side by side, and plugs them together.
async fn launch(planned: &Planned, means: &Means) -> Result<Launched, VmError> {
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
    make(&disks::dir(&planned.dir), way)?;
    make(&monitor_dir(&planned.dir), 0o700)
}

/// Where the monitor may make files, which nobody else takes for anything.
fn monitor_dir(machine: &Path) -> PathBuf {
    machine.join("vmm")
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (work.await, begun.elapsed())
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
        .and_then(|listener| user::give(Path::new(&path), user).map(|()| listener))
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

fn machine(planned: &Planned, means: &Means) -> MachinePlan {
    let capabilities = means.driver.capabilities();
    MachinePlan {
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
        open: vec![disks::dir(&planned.dir)],
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

/// Lets the machine run until its agent has answered the first call. The network is connected
/// while it starts.
async fn connect(
    planned: &Planned,
    means: &Means,
    (parts, told, listener): (&Parts, &GuestNetwork, &UnixListener),
    timings: &mut Timings,
    note: impl Fn(&Parts) -> Result<(), VmError>,
) -> Result<(Guest, Option<PortForward>), VmError> {
    let (config, begun) = (&means.config, timings.begun);
    note(parts)?;
    let run = async {
        parts.vmm.boot().await?;
        timings.booted = begun.elapsed();
        let control = accept(parts.tree.dir(), listener, config.timeouts.boot()).await?;
        timings.connected = begun.elapsed();
        Ok(control)
    };
    let network = async {
        let Some(network) = &parts.network else { return Ok(()) };
        let (connected, took) = timed(network.connect()).await;
        timings.network = took;
        connected.map_err(Error::from)?;
        note(parts)
    };
    let (control, ()) = tokio::try_join!(run, network)?;
    let (call, create) = (config.timeouts.call(), config.timeouts.create());
    let guest = Guest::new(control, parts.vmm.vsock(), call, create);
    let request = configuration(planned, means, told)?;
    let answer = guest.configure(request, config.timeouts.create()).await?;
    let forward = match &parts.network {
        Some(network) => network.forward_ports(parts.vmm.vsock().to_owned()).await,
        None => None,
    };
    report(means.prepared, timings, begun.elapsed(), &answer);
    Ok((guest, forward))
}

/// Waits for the agent's call. Only the first connection counts; the socket goes with the listener.
async fn accept(
    dir: &Path,
    listener: &UnixListener,
    limit: Duration,
) -> Result<UnixStream, VmError> {
    match tokio::time::timeout(limit, listener.accept()).await {
        Ok(Ok((control, _))) => Ok(control),
        Ok(Err(source)) => Err(VmError::file("accepting the agent at", dir)(source)),
        Err(_) => Err(VmError::Silent { seconds: limit.as_secs(), console: console(dir) }),
    }
}

/// Why a machine ended before its guest was there, as the end of an error's text.
fn stillborn(planned: &Planned) -> String {
    let group = planned.cgroup.as_deref().and_then(|path| Cgroup::new(path).ok());
    match group.and_then(|group| group.oom_kills()) {
        Some(kills) if kills > 0 => {
            ": the Pod's cgroup has no room for it; raise overhead.podFixed.memory of its \
             RuntimeClass, or the Pod's memory limit"
                .to_owned()
        }
        _ => console(&planned.dir),
    }
}

/// The last words on the guest's console, as the end of an error's text.
fn console(dir: &Path) -> String {
    let Ok(text) = std::fs::read(dir.join("console")) else {
        return "; set console = true in the handler's file to see the guest's console".to_owned();
    };
    let tail = &text[text.len().saturating_sub(CONSOLE_TAIL)..];
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let tail: String = String::from_utf8_lossy(tail).chars().map(printable).collect();
    format!("; its console ends with: {}", tail.trim())
}

fn configuration(
    planned: &Planned,
    means: &Means,
    network: &GuestNetwork,
) -> Result<ConfigureRequest, VmError> {
    let share = agent::Share {
        tag: SHARE_TAG.to_owned(),
        mount_point: SHARE_MOUNT.to_owned(),
        ..agent::Share::default()
    };
    let mut entropy = vec![0; ENTROPY];
    let random = std::fs::File::open("/dev/urandom");
    random
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut entropy))
        .map_err(VmError::file("reading", "/dev/urandom"))?;
    Ok(ConfigureRequest {
        hostname: planned.guest.hostname.clone().unwrap_or_else(|| short(&planned.id)),
        sysctls: planned.guest.sysctls.clone().into_iter().collect(),
        entropy,
        interfaces: network.interfaces.clone(),
        routes: network.routes.clone(),
        neighbours: network.neighbours.clone(),
        shares: vec![share],
        stream_write_max: means.driver.capabilities().stream_write_max.unwrap_or(0),
        shm_size: planned.guest.shm.as_ref().map_or(0, |(_, size)| *size),
        debug: means.config.debug,
        ..ConfigureRequest::default()
    })
}

/// What a guest without a name is called: a short id, as container engines do.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// One line with every phase, in milliseconds.
fn report(prepared: Duration, timings: &Timings, whole: Duration, answer: &ConfigureResponse) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    log::info!(
        "boot: host preparation {:.1} ms, VMM start {:.1} ms (monitor {:.1} ms, share {:.1} ms, taps \
         {:.1} ms), machine started {:.1} ms (network beside it {:.1} ms), kernel to agent {:.1} ms (by the guest's clock \
         {:.1} ms), configure {:.1} ms, in all {:.1} ms",
        ms(prepared),
        ms(timings.launched),
        ms(timings.sides[0]),
        ms(timings.sides[1]),
        ms(timings.sides[2]),
        ms(timings.booted.saturating_sub(timings.launched)),
        ms(timings.network),
        ms(timings.connected.saturating_sub(timings.booted)),
        ms(Duration::from_nanos(answer.agent_started_ns)),
        ms(whole.saturating_sub(timings.connected)),
        ms(prepared + whole),
    );
}
