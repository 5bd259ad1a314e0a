//! QEMU, driven over QMP: with KVM where cloud-hypervisor is not installed, and with emulated
//! processors where there is no KVM.
//!
//! The guest's vsock is a second process, `vhost-device-vsock`: it speaks the same hybrid
//! protocol as cloud-hypervisor's own.

mod argv;
mod devices;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sandbox_core::host::{Command, ExitWatch, Host, ProcessMark};
use sandbox_core::{Exit, Result};
use serde_json::json;
use tokio::net::UnixStream;

pub use self::argv::Accel;
use self::argv::fd;
use self::devices::{Devices, NAME, PLACES};
use crate::bounded_log::BoundedLog;
use crate::check::{check, check_files, vsock};
use crate::connect::{connect, pair};
use crate::crew::Crew;
use crate::error::DriverError;
use crate::qmp::{Qmp, Version};
use crate::user::check_kvm;
use crate::vmm::{CONSOLE_MAX, Capabilities, Device, Driver, Machine, Vmm};

/// The oldest version that was seen to work.
const OLDEST: Version = Version { major: 7, minor: 2, micro: 0 };
/// Places that disks leave to network interfaces and shares.
const RESERVED: usize = 14;
/// The guest's vsock address; each machine's vsock is its own, so that it need not be unique.
const GUEST_CID: u32 = 3;
/// `vhost-device-vsock` takes one descriptor of a packet's data: a newer guest kernel that
/// writes more at once than fits in one stalls for ever. 32000 bytes were seen to pass.
const STREAM_WRITE_MAX: u32 = 32_000;

/// How QEMU is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuSettings {
    /// `qemu-system-x86_64`: an absolute path, or a name in the search path.
    pub program: PathBuf,
    /// `vhost-device-vsock`: an absolute path, or a name in the search path.
    pub vsock_device: PathBuf,
    /// What executes the guest's instructions.
    pub accel: Accel,
    /// How long its processes may take until the machine is made.
    pub launch_deadline: Duration,
    /// How long QEMU may take for a command, the guest's part in it included.
    pub command_deadline: Duration,
}

impl Default for QemuSettings {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            vsock_device: "vhost-device-vsock".into(),
            accel: Accel::Kvm,
            launch_deadline: Duration::from_secs(20),
            command_deadline: Duration::from_secs(20),
        }
    }
}

/// Starts QEMU (7.2 or later).
#[derive(Debug)]
pub struct Qemu {
    host: Arc<dyn Host>,
    settings: QemuSettings,
}

impl Qemu {
    /// A driver that starts its processes by `host`.
    pub fn new(host: Arc<dyn Host>, settings: QemuSettings) -> Self {
        Self { host, settings }
    }

    /// Starts the vsock device and connects to it.
    async fn start_vsock(&self, crew: &mut Crew, dir: &Path) -> Result<UnixStream, DriverError> {
        let (socket, hybrid) = (dir.join("vhost-vsock"), vsock(dir));
        let vm = format!(
            "guest-cid={GUEST_CID},socket={},uds-path={}",
            socket.display(),
            hybrid.display()
        );
        crew.removes(socket.clone());
        crew.removes(hybrid);
        let command = Command::new(&self.settings.vsock_device).arg("--vm").arg(vm);
        crew.start("vhost-device-vsock", command)?;
        crew.attended("serve its socket", self.settings.launch_deadline, connect(&socket)).await
    }

    async fn make(&self, crew: &mut Crew, machine: &Machine) -> Result<(u32, Qmp), DriverError> {
        let io = |source| DriverError::Io { program: NAME, source };
        let vsock = self.start_vsock(crew, &machine.dir).await?.into_std().map_err(io)?;
        vsock.set_nonblocking(false).map_err(io)?;
        let (monitor, theirs) = pair().map_err(io)?;
        let mut command = Command::new(&self.settings.program)
            .args(argv::argv(machine, self.settings.accel))
            .fd(fd::QMP, theirs)
            .fd(fd::VSOCK, OwnedFd::from(vsock));
        if let Some(console) = &machine.console {
            let (ours, theirs) = pair().map_err(io)?;
            BoundedLog::start(ours, console, CONSOLE_MAX)
                .map_err(DriverError::creating(console))?;
            command = command.fd(fd::CONSOLE, theirs);
        }
        let pid = match self.settings.accel {
            Accel::Kvm => crew.start_on_kvm(NAME, command)?,
            Accel::Tcg => crew.start(NAME, command)?,
        };
        let deadline = self.settings.launch_deadline;
        let greeting = Qmp::start(monitor, self.settings.command_deadline);
        let step = format!("make the machine ({})", self.settings.program.display());
        let (qmp, version) = crew.attended(&step, deadline, greeting).await?;
        if version < OLDEST {
            let version = format!("{}.{}.{}", version.major, version.minor, version.micro);
            return Err(DriverError::Old { program: NAME, version, oldest: "7.2" });
        }
        Ok((pid, qmp))
    }
}

#[async_trait]
impl Driver for Qemu {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: NAME,
            emulated: self.settings.accel == Accel::Tcg,
            disks: PLACES - RESERVED,
            grow_memory: true,
            grow_vcpus: true,
            stream_write_max: Some(STREAM_WRITE_MAX),
        }
    }

    async fn launch(&self, machine: &Machine) -> Result<Arc<dyn Vmm>> {
        check(machine)?;
        check_files(machine)?;
        if self.settings.accel == Accel::Kvm {
            check_kvm(machine)?;
        }
        let mut crew = Crew::new(Arc::clone(&self.host), machine)?;
        let (pid, qmp) = match self.make(&mut crew, machine).await {
            Ok(made) => made,
            Err(error) => {
                crew.stop().await?;
                return Err(error.into());
            }
        };
        let (crew, ended) = crew.supervise();
        let qmp = Arc::new(qmp);
        Ok(Arc::new(QemuVmm {
            pid,
            crew,
            ended,
            devices: Devices::new(machine, Arc::clone(&qmp)),
            qmp,
            vsock: vsock(&machine.dir),
            booted: AtomicBool::new(false),
            deadline: self.settings.command_deadline,
        }))
    }
}

/// A machine in QEMU.
#[derive(Debug)]
struct QemuVmm {
    pid: u32,
    crew: Arc<Crew>,
    ended: ExitWatch,
    qmp: Arc<Qmp>,
    devices: Devices,
    vsock: PathBuf,
    booted: AtomicBool,
    deadline: Duration,
}

#[async_trait]
impl Vmm for QemuVmm {
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
        // Several commands, each with its own deadline.
        Ok(self
            .crew
            .attended("plug in a device", self.deadline * 4, self.devices.plug(device))
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
            .attended("unplug a device", self.deadline * 4, self.devices.unplug(id))
            .await?)
    }

    async fn boot(&self) -> Result<()> {
        if self.booted.swap(true, Ordering::AcqRel) {
            return Err(DriverError::State("already runs").into());
        }
        let boot = self.qmp.call("cont", json!({}));
        self.crew.attended("run the machine", self.deadline * 2, boot).await?;
        Ok(())
    }

    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()> {
        let grow = self.devices.grow(vcpus, memory);
        // One command for each processor and two for a memory module.
        Ok(self.crew.attended("grow the machine", self.deadline * 4, grow).await?)
    }

    async fn stop(&self) -> Result<()> {
        Ok(self.crew.stop().await?)
    }

    async fn exited(&self) -> Exit {
        self.ended.wait().await
    }
}
