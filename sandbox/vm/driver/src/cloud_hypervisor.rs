//! cloud-hypervisor, driven over its REST interface: the driver for production, where KVM is.

mod config;
mod devices;
mod events;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::stat::Mode;
use sandbox_core::host::{Command, ExitWatch, Host, ProcessMark};
use sandbox_core::{Exit, Result};
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use self::devices::{Devices, NAME, PLACES};
use self::events::Removals;
use crate::bounded_log::BoundedLog;
use crate::check::{check, check_files, vsock};
use crate::connect::pair;
use crate::crew::Crew;
use crate::error::DriverError;
use crate::rest::Rest;
use crate::user::check_kvm;
use crate::vmm::{CONSOLE_MAX, Capabilities, Device, Driver, Machine, Vmm};

/// The oldest major version: it takes vsock packets of any size from newer guest kernels, and
/// an image's type instead of guessing it.
const OLDEST: u32 = 51;
/// Places that disks leave to network interfaces and shares.
const RESERVED: usize = 8;

/// The numbers under which it gets its file descriptors.
mod fd {
    pub(crate) const API: i32 = 3;
    pub(crate) const EVENTS: i32 = 4;
}

/// How cloud-hypervisor is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudHypervisorSettings {
    /// The program: an absolute path, or a name in the search path.
    pub program: PathBuf,
    /// How long it may take until the machine is made.
    pub launch_deadline: Duration,
    /// How long it may take for a call, the guest's part in it included.
    pub command_deadline: Duration,
}

impl Default for CloudHypervisorSettings {
    fn default() -> Self {
        Self {
            program: NAME.into(),
            launch_deadline: Duration::from_secs(20),
            command_deadline: Duration::from_secs(20),
        }
    }
}

/// Starts cloud-hypervisor (version 51 or later).
#[derive(Debug)]
pub struct CloudHypervisor {
    host: Arc<dyn Host>,
    settings: CloudHypervisorSettings,
}

/// What `vmm.ping` tells.
#[derive(Deserialize)]
struct Ping {
    version: String,
}

/// A monitor that has been started.
struct Started {
    pid: u32,
    rest: Rest,
    events: UnixStream,
}

impl CloudHypervisor {
    /// A driver that starts its processes by `host`.
    pub fn new(host: Arc<dyn Host>, settings: CloudHypervisorSettings) -> Self {
        Self { host, settings }
    }

    /// Starts the monitor on a socket that listens already, so that a call need not be retried.
    fn start(&self, crew: &mut Crew, dir: &Path) -> Result<Started, DriverError> {
        let io = |source| DriverError::Io { program: NAME, source };
        let socket = dir.join("api");
        crew.removes(socket.clone());
        crew.removes(vsock(dir));
        let listener = UnixListener::bind(&socket).map_err(|source| {
            let path = socket.clone();
            DriverError::File { step: "listening on", path, source }
        })?;
        let (events, theirs) = pair().map_err(io)?;
        let command = Command::new(&self.settings.program)
            .args(["--api-socket", &format!("fd={}", fd::API)])
            .args(["--event-monitor", &format!("fd={}", fd::EVENTS)])
            .args(["--seccomp", "true"])
            .fd(fd::API, OwnedFd::from(listener))
            .fd(fd::EVENTS, theirs);
        let pid = crew.start_on_kvm(NAME, command)?;
        Ok(Started { pid, rest: Rest::new(socket, self.settings.command_deadline), events })
    }

    async fn make(&self, crew: &mut Crew, machine: &Machine) -> Result<Started, DriverError> {
        let started = self.start(crew, &machine.dir)?;
        let console = machine.console.as_ref().map(|_| machine.dir.join("console.fifo"));
        let reader = console.as_deref().map(fifo).transpose()?;
        if let Some(console) = &console {
            crew.give(console)?;
            crew.removes(console.clone());
        }
        let config = config::config(machine, console.as_deref());
        let create = async {
            check_version(&started.rest.get("vmm.ping").await?)?;
            started.rest.put("vm.create", Some(config), None).await
        };
        let step = format!("make the machine ({})", self.settings.program.display());
        let created = crew.attended(&step, self.settings.launch_deadline, create).await;
        // The call's own deadline may be the first to pass; which program it was is told as well.
        created.map_err(|error| match error {
            DriverError::Deadline { program, after, .. } => {
                DriverError::Deadline { program, step, after }
            }
            other => other,
        })?;
        // Only now is there a writer, without whom the fifo would end at once.
        if let (Some(reader), Some(console)) = (reader, &machine.console) {
            BoundedLog::start(reader, console, CONSOLE_MAX)
                .map_err(DriverError::creating(console))?;
        }
        Ok(started)
    }
}

fn check_version(ping: &[u8]) -> Result<(), DriverError> {
    let wrong = |reason: &dyn ToString| {
        let (call, reason) = ("vmm.ping".to_owned(), reason.to_string());
        DriverError::Answer { program: NAME, call, reason }
    };
    let Ping { version } = serde_json::from_slice(ping).map_err(|error| wrong(&error))?;
    let number = version.trim_start_matches('v');
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    let major: u32 =
        number[..digits].parse().map_err(|_| wrong(&format!("version {version:?}")))?;
    if major < OLDEST {
        return Err(DriverError::Old { program: NAME, version, oldest: "version 51" });
    }
    Ok(())
}

/// A new fifo's reading end.
fn fifo(path: &Path) -> Result<pipe::Receiver, DriverError> {
    let failed =
        |source| DriverError::File { step: "making the console's fifo", path: path.into(), source };
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed(e.into()))?;
    pipe::OpenOptions::new().open_receiver(path).map_err(failed)
}

#[async_trait]
impl Driver for CloudHypervisor {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: NAME,
            emulated: false,
            disks: PLACES - RESERVED,
            grow_memory: true,
            grow_vcpus: true,
            stream_write_max: None,
        }
    }

    async fn launch(&self, machine: &Machine) -> Result<Arc<dyn Vmm>> {
        check(machine)?;
        check_files(machine)?;
        check_kvm(machine)?;
        let mut crew = Crew::new(Arc::clone(&self.host), machine)?;
        let Started { pid, rest, events } = match self.make(&mut crew, machine).await {
            Ok(started) => started,
            Err(error) => {
                crew.stop().await?;
                return Err(error.into());
            }
        };
        let (crew, ended) = crew.supervise();
        let removals = Removals::new();
        let (told, watched) = (removals.clone(), Arc::clone(&crew));
        // It ends with the monitor's process, which closes its end.
        tokio::spawn(async move {
            if events::follow(events, &told).await {
                tracing::info!("the machine's guest restarts, which ends the machine");
                watched.kill();
            }
        });
        Ok(Arc::new(CloudHypervisorVmm {
            pid,
            crew,
            ended,
            devices: Devices::new(machine, rest.clone(), removals, self.settings.command_deadline),
            rest,
            vsock: vsock(&machine.dir),
            booted: AtomicBool::new(false),
            deadline: self.settings.command_deadline,
        }))
    }
}

/// A machine in cloud-hypervisor.
#[derive(Debug)]
struct CloudHypervisorVmm {
    pid: u32,
    crew: Arc<Crew>,
    ended: ExitWatch,
    rest: Rest,
    devices: Devices,
    vsock: PathBuf,
    booted: AtomicBool,
    deadline: Duration,
}

#[async_trait]
impl Vmm for CloudHypervisorVmm {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn processes(&self) -> Vec<ProcessMark> {
        self.crew.marks()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn attach(&self, device: Device) -> Result<()> {
        Ok(self
            .crew
            .attended("plug in a device", self.deadline * 2, self.devices.plug(device))
            .await?)
    }

    async fn detach(&self, id: &str) -> Result<()> {
        if !self.devices.has(id) {
            return Ok(());
        }
        if !self.booted.load(Ordering::Acquire) {
            return Err(DriverError::State("does not run yet, so nothing can be unplugged").into());
        }
        Ok(self
            .crew
            .attended("unplug a device", self.deadline * 3, self.devices.unplug(id))
            .await?)
    }

    async fn boot(&self) -> Result<()> {
        if self.booted.swap(true, Ordering::AcqRel) {
            return Err(DriverError::State("already runs").into());
        }
        let boot = self.rest.put("vm.boot", None, None);
        Ok(self.crew.attended("run the machine", self.deadline * 2, boot).await?)
    }

    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()> {
        let grow = self.devices.grow(vcpus, memory);
        Ok(self.crew.attended("grow the machine", self.deadline * 3, grow).await?)
    }

    async fn stop(&self) -> Result<()> {
        Ok(self.crew.stop().await?)
    }

    async fn exited(&self) -> Exit {
        self.ended.wait().await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_versions_are_refused() {
        let ping = |version: &str| {
            let ping =
                json!({ "build_version": "v9", "version": version, "pid": 7, "features": [] });
            check_version(ping.to_string().as_bytes())
        };
        ping("51.0.0").unwrap();
        ping("v54.1").unwrap();
        let old = ping("50.2.0").unwrap_err();
        let text = "cloud-hypervisor 50.2.0 is too old; install version 51 or later";
        assert_eq!(old.to_string(), text);
        assert!(matches!(ping("new"), Err(DriverError::Answer { .. })));
        assert!(check_version(b"{}").is_err());
    }
}
