//! From nothing to a guest that answers, as a chain of values: `Planned` (what to boot), the
//! launched parts, the connected machine. What fails on the way takes down all that came before.

mod launch;
mod timings;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_api::agent::{self, ConfigureRequest};
use agent_api::{SHARE_MOUNT, SHARE_TAG};
use sandbox_core::Error;
use sandbox_core::cgroup::Cgroup;
use sandbox_netns::PortForward;
use tokio::net::{UnixListener, UnixStream};
use vm_network::GuestNetwork;
use vm_volumes::GuestPlan;

use self::launch::{Launched, launch};
use self::timings::{Timings, report, timed};
use crate::backend::Means;
use crate::dial::GuestPorts;
use crate::error::VmError;
use crate::guest::Guest;
use crate::machine::{Connected, Parts};
use crate::size::Size;
use crate::wire;

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
        Some(network) => network.forward_ports(Arc::new(GuestPorts::new(parts.vmm.vsock()))).await,
        None => None,
    };
    report(means.prepared, timings, begun.elapsed(), &answer, guest.waited());
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
        interfaces: wire::interfaces(network),
        routes: wire::routes(network),
        neighbours: wire::neighbours(network),
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
