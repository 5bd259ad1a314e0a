//! The boot of a VM as a chain of values: the [`Plan`], the launched parts, the booted VM. When a
//! step fails, what the steps before it started is stopped.

mod launch;
mod timings;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_api::agent::{self, ConfigureRequest};
use agent_api::{SHARE_MOUNT, SHARE_TAG};
use sandbox_core::cgroup::Cgroup;
use sandbox_core::{Error, Id};
use sandbox_netns::PortForward;
use tokio::net::{UnixListener, UnixStream};
use vm_network::GuestNetwork;
use vm_volumes::GuestPlan;

use self::launch::{Launched, launch};
use self::timings::{Timings, report, timed};
use crate::dial::GuestPorts;
use crate::environment::Environment;
use crate::error::VmError;
use crate::guest::Guest;
use crate::size::Size;
use crate::vm::{Booted, Parts};
use crate::wire;

/// How many bytes of the guest's console an error shows.
const CONSOLE_TAIL: usize = 600;

/// Bytes stirred into the guest's random pool.
const ENTROPY: usize = 64;

/// A VM to boot.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The sandbox's id.
    pub(crate) id: Id,
    /// The VM's directory; made here.
    pub(crate) dir: PathBuf,
    /// The Pod's network namespace; without one the guest has its loopback alone.
    pub(crate) netns: Option<PathBuf>,
    /// The Pod's cgroup, as `linux.cgroupsPath` names it.
    pub(crate) cgroup: Option<String>,
    /// Host name, sysctls and `/dev/shm`.
    pub(crate) guest: GuestPlan,
    pub(crate) size: Size,
    /// The size it can grow to.
    pub(crate) most: Size,
    /// UID the VMM runs as; `None` means root.
    pub(crate) user: Option<u32>,
}

/// Boots `plan`. `note` records the parts as soon as they run, and again when the network is
/// connected.
pub(crate) async fn boot(
    plan: &Plan,
    environment: &Environment,
    note: impl Fn(&Parts) -> Result<(), VmError>,
) -> Result<Booted, VmError> {
    let mut launched = launch(plan, environment).await?;
    let Launched { parts, network, listener, timings } = &mut launched;
    let request = configuration(plan, environment, network);
    let connected = tokio::select! {
        connected = connect(environment, parts, listener, request, timings, note) => connected,
        _ = parts.broken() => Err(VmError::NotBooted(reason(plan))),
    };
    match connected {
        Ok((guest, forward)) => Ok(Booted {
            id: plan.id.clone(),
            parts: launched.parts,
            guest,
            capabilities: environment.driver.capabilities(),
            user: plan.user,
            size: plan.size,
            most: plan.most,
            shm: plan.guest.shm.as_ref().map(|(path, _)| path.clone()),
            forward,
        }),
        Err(error) => {
            if let Err(left) = launched.parts.stop().await {
                tracing::warn!(sandbox = %plan.id, "after a failed boot: {}", Error::from(left));
            }
            Err(error)
        }
    }
}

/// Runs the VM until its agent has answered `request`, the first call. The network is connected
/// while the guest boots.
async fn connect(
    environment: &Environment,
    parts: &Parts,
    listener: &UnixListener,
    request: Result<ConfigureRequest, VmError>,
    timings: &mut Timings,
    note: impl Fn(&Parts) -> Result<(), VmError>,
) -> Result<(Guest, Option<PortForward>), VmError> {
    let config = &environment.config;
    let begun = timings.begun;
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
    let create = config.timeouts.create();
    let guest = Guest::new(control, parts.vmm.vsock(), config.timeouts.call(), create);
    let answer = guest.configure(request?, create).await?;
    let forward = match &parts.network {
        Some(network) => network.forward_ports(Arc::new(GuestPorts::new(parts.vmm.vsock()))).await,
        None => None,
    };
    report(environment.prepared, timings, begun.elapsed(), &answer, guest.waited());
    Ok((guest, forward))
}

/// Waits for the agent's connection. Only the first one is accepted.
async fn accept(
    dir: &Path,
    listener: &UnixListener,
    limit: Duration,
) -> Result<UnixStream, VmError> {
    match tokio::time::timeout(limit, listener.accept()).await {
        Ok(Ok((control, _))) => Ok(control),
        Ok(Err(source)) => Err(VmError::file("accepting the agent at", dir)(source)),
        Err(_) => Err(VmError::NotConnected { seconds: limit.as_secs(), console: console(dir) }),
    }
}

/// Why a VM exited during its boot, as an error's last words.
fn reason(plan: &Plan) -> String {
    let group = plan.cgroup.as_deref().and_then(|path| Cgroup::new(path).ok());
    match group.and_then(|group| group.oom_kills()) {
        Some(kills) if kills > 0 => {
            ": the Pod's cgroup has no room for it; raise overhead.podFixed.memory of its \
             RuntimeClass, or the Pod's memory limit"
                .to_owned()
        }
        _ => console(&plan.dir),
    }
}

/// The last output on the guest's console, as an error's last words.
fn console(dir: &Path) -> String {
    let Ok(text) = std::fs::read(dir.join("console")) else {
        return "; set console = true in the handler's file to see the guest's console".to_owned();
    };
    let tail = &text[text.len().saturating_sub(CONSOLE_TAIL)..];
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let tail: String = String::from_utf8_lossy(tail).chars().map(printable).collect();
    format!("; its console ends with: {}", tail.trim())
}

/// The first call to the agent.
fn configuration(
    plan: &Plan,
    environment: &Environment,
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
        hostname: plan.guest.hostname.clone().unwrap_or_else(|| short(plan.id.as_str())),
        sysctls: plan.guest.sysctls.clone().into_iter().collect(),
        entropy,
        interfaces: wire::interfaces(network),
        routes: wire::routes(network),
        neighbours: wire::neighbours(network),
        shares: vec![share],
        stream_write_max: environment.driver.capabilities().stream_write_max.unwrap_or(0),
        shm_size: plan.guest.shm.as_ref().map_or(0, |(_, size)| *size),
        debug: environment.config.debug,
        ..ConfigureRequest::default()
    })
}

/// The host name of a guest without one: a short id, as with container engines.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}
