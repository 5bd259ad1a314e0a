//! The boot of a VM as a chain of values: the [`Plan`], the launched parts, the booted VM. When a
//! step fails, what the steps before it started is stopped.

mod launch;
mod plan;
mod timings;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::Error;
use sandbox_host::cgroup::Cgroup;
use sandbox_netns::PortForward;
use tokio::net::{UnixListener, UnixStream};
use vm_network::GuestNetwork;

use self::launch::{Launched, launch};
pub(crate) use self::plan::Plan;
use self::timings::{Timings, report, timed};
use crate::dial::GuestPorts;
use crate::environment::Environment;
use crate::error::VmError;
use crate::guest::{Configuration, Guest};
use crate::vm::{Booted, Parts};

/// How many bytes of the guest's console an error shows.
const CONSOLE_TAIL: usize = 600;

/// Bytes stirred into the guest's random pool.
const ENTROPY: usize = 64;

/// Boots `plan`. `note` records the parts as soon as they run, and again when the network is
/// connected.
pub(crate) async fn boot(
    plan: &Plan,
    environment: &Environment,
    note: impl Fn(&Parts) -> Result<(), VmError>,
) -> Result<Booted, VmError> {
    let mut launched = launch(plan, environment).await?;
    let Launched { parts, network, listener, timings } = &mut launched;
    let configuration = configuration(plan, environment, network);
    let connected = tokio::select! {
        connected = connect(environment, parts, listener, configuration, timings, note) => connected,
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

/// Runs the VM until its agent has answered the first call. The network is connected
/// while the guest boots.
async fn connect(
    environment: &Environment,
    parts: &Parts,
    listener: &UnixListener,
    configuration: Result<Configuration<'_>, VmError>,
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
    let agent_started = guest.configure(&configuration?, create).await?;
    let forward = match &parts.network {
        Some(network) => network.forward_ports(Arc::new(GuestPorts::new(parts.vmm.vsock()))).await,
        None => None,
    };
    report(environment.prepared, timings, begun.elapsed(), agent_started, guest.waited());
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
fn configuration<'a>(
    plan: &'a Plan,
    environment: &Environment,
    network: &'a GuestNetwork,
) -> Result<Configuration<'a>, VmError> {
    let mut entropy = vec![0; ENTROPY];
    let random = std::fs::File::open("/dev/urandom");
    random
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut entropy))
        .map_err(VmError::file("reading", "/dev/urandom"))?;
    Ok(Configuration {
        hostname: plan.guest.hostname.clone().unwrap_or_else(|| short(plan.id.as_str())),
        plan: &plan.guest,
        network,
        entropy,
        stream_write_max: environment.driver.capabilities().stream_write_max,
        debug: environment.config.debug,
    })
}

/// The host name of a guest without one: a short id, as with container engines.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}
