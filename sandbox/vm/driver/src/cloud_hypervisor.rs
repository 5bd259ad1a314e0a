//! cloud-hypervisor, driven over its REST API: the driver for production hosts with KVM.

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
use sandbox_host::{Command, Exit, ExitWatch, Host, ProcessRef, Result};
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use self::devices::{Devices, NAME, PLACES};
use self::events::Removals;
use crate::bounded_log::BoundedLog;
use crate::check::{check, check_files, vsock};
use crate::connect::pair;
use crate::error::DriverError;
use crate::processes::Processes;
use crate::rest::Rest;
use crate::user::check_kvm;
use crate::vmm::{CONSOLE_MAX, Capabilities, Device, Driver, VmPlan, Vmm};

/// The oldest supported major version: the first that accepts vsock packets of any size from
/// newer guest kernels, and an explicit image type.
const OLDEST: u32 = 51;
/// Slots reserved for network interfaces and shares.
const RESERVED: usize = 8;

/// The file descriptors that it inherits.
mod fd {
    pub(crate) const API: i32 = 3;
    pub(crate) const EVENTS: i32 = 4;
}

/// How cloud-hypervisor is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudHypervisorSettings {
    /// The program: an absolute path, or a name in the search path.
    pub program: PathBuf,
    /// Deadline for creating the VM.
    pub launch_deadline: Duration,
    /// Deadline for one API call, the guest's part in it included.
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

/// The answer to `vmm.ping`.
#[derive(Deserialize)]
struct Ping {
    version: String,
}

/// A VMM that has been started.
struct Started {
    pid: u32,
    rest: Rest,
    events: UnixStream,
}

impl CloudHypervisor {
    /// A driver that starts its processes through `host`.
    pub fn new(host: Arc<dyn Host>, settings: CloudHypervisorSettings) -> Self {
        Self { host, settings }
    }

    /// Starts the VMM with a listening socket, so that the first call needs no retries.
    fn start(&self, processes: &mut Processes, dir: &Path) -> Result<Started, DriverError> {
        let io = |source| DriverError::Io { program: NAME, source };
        let socket = dir.join("api");
        processes.remove_at_exit(socket.clone());
        processes.remove_at_exit(vsock(dir));
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
        let pid = processes.start_with_kvm(NAME, command)?;
        Ok(Started { pid, rest: Rest::new(socket, self.settings.command_deadline), events })
    }

    async fn make(&self, processes: &mut Processes, vm: &VmPlan) -> Result<Started, DriverError> {
        let started = self.start(processes, &vm.dir)?;
        let console = vm.console.as_ref().map(|_| vm.dir.join("console.fifo"));
        let reader = console.as_deref().map(fifo).transpose()?;
        if let Some(console) = &console {
            processes.chown(console)?;
            processes.remove_at_exit(console.clone());
        }
        let config = config::config(vm, console.as_deref());
        let create = async {
            check_version(&started.rest.get("vmm.ping").await?)?;
            started.rest.put("vm.create", Some(config), None).await
        };
        let step = format!("create the VM ({})", self.settings.program.display());
        let created = processes.watched(&step, self.settings.launch_deadline, create).await;
        // The call's own deadline may pass first: the error then names the program as well.
        created.map_err(|error| match error {
            DriverError::Deadline { program, after, .. } => {
                DriverError::Deadline { program, step, after }
            }
            other => other,
        })?;
        // Only now does the fifo have a writer, without which reading it ends at once.
        if let (Some(reader), Some(console)) = (reader, &vm.console) {
            BoundedLog::start(reader, console, CONSOLE_MAX)
                .map_err(DriverError::creating(console))?;
        }
        Ok(started)
    }
}

fn check_version(ping: &[u8]) -> Result<(), DriverError> {
    let wrong = |reason: &dyn ToString| DriverError::Answer {
        program: NAME,
        call: "vmm.ping".to_owned(),
        reason: reason.to_string(),
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

/// Creates a fifo and opens its read end.
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

    async fn launch(&self, vm: &VmPlan) -> Result<Arc<dyn Vmm>> {
        check(vm)?;
        check_files(vm)?;
        check_kvm(vm)?;
        let mut processes = Processes::new(Arc::clone(&self.host), vm)?;
        let Started { pid, rest, events } = match self.make(&mut processes, vm).await {
            Ok(started) => started,
            Err(error) => {
                processes.stop().await?;
                return Err(error.into());
            }
        };
        let (processes, exited) = processes.supervise();
        let removals = Removals::new();
        let followed = removals.clone();
        let watched = Arc::clone(&processes);
        // It ends with the VMM, which closes its end of the pipe.
        tokio::spawn(async move {
            if events::follow(events, &followed).await {
                tracing::info!("the guest reboots: stopping its VM");
                watched.kill();
            }
        });
        Ok(Arc::new(CloudHypervisorVmm {
            pid,
            processes,
            exited,
            devices: Devices::new(vm, rest.clone(), removals, self.settings.command_deadline),
            rest,
            vsock: vsock(&vm.dir),
            booted: AtomicBool::new(false),
            deadline: self.settings.command_deadline,
        }))
    }
}

/// A VM in cloud-hypervisor.
#[derive(Debug)]
struct CloudHypervisorVmm {
    pid: u32,
    processes: Arc<Processes>,
    exited: ExitWatch,
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

    fn processes(&self) -> Vec<ProcessRef> {
        self.processes.marks()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn attach(&self, device: Device) -> Result<()> {
        Ok(self
            .processes
            .watched("plug in a device", self.deadline * 2, self.devices.plug(device))
            .await?)
    }

    async fn detach(&self, id: &str) -> Result<()> {
        if !self.devices.has(id) {
            return Ok(());
        }
        if !self.booted.load(Ordering::Acquire) {
            return Err(DriverError::State("is not running yet: nothing can be unplugged").into());
        }
        Ok(self
            .processes
            .watched("unplug a device", self.deadline * 3, self.devices.unplug(id))
            .await?)
    }

    async fn boot(&self) -> Result<()> {
        if self.booted.swap(true, Ordering::AcqRel) {
            return Err(DriverError::State("is already running").into());
        }
        let boot = self.rest.put("vm.boot", None, None);
        Ok(self.processes.watched("boot the VM", self.deadline * 2, boot).await?)
    }

    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()> {
        let grow = self.devices.grow(vcpus, memory);
        Ok(self.processes.watched("grow the VM", self.deadline * 3, grow).await?)
    }

    async fn stop(&self) -> Result<()> {
        Ok(self.processes.stop().await?)
    }

    async fn exited(&self) -> Exit {
        self.exited.wait().await
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
