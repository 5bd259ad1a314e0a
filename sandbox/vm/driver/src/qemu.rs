//! QEMU, driven over QMP: with KVM where cloud-hypervisor is not installed, and with emulated
//! processors where there is no KVM.
//!
//! The guest's vsock is served by a second process, `vhost-device-vsock`, with the same hybrid
//! protocol as cloud-hypervisor's.

mod argv;
mod devices;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sandbox_host::{Command, Exit, ExitWatch, Host, ProcessRef, Result};
use serde_json::json;
use tokio::net::UnixStream;

pub use self::argv::Accel;
use self::argv::fd;
use self::devices::{Devices, NAME, PLACES};
use crate::bounded_log::BoundedLog;
use crate::check::{check, check_files, vsock};
use crate::connect::{connect, pair};
use crate::error::DriverError;
use crate::processes::Processes;
use crate::qmp::{Qmp, Version};
use crate::user::check_kvm;
use crate::vmm::{CONSOLE_MAX, Capabilities, Device, Driver, VmPlan, Vmm};

/// The oldest version that is known to work.
const OLDEST: Version = Version { major: 7, minor: 2, micro: 0 };
/// Slots reserved for network interfaces and shares.
const RESERVED: usize = 14;
/// The guest's vsock address; it need not be unique, since each VM has a vsock device of its own.
const GUEST_CID: u32 = 3;
/// `vhost-device-vsock` accepts one descriptor of data per packet: a newer guest kernel that writes
/// more at once stalls for ever. 32000 bytes are known to work.
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
    /// Deadline for creating the VM.
    pub launch_deadline: Duration,
    /// Deadline for one QMP command, the guest's part in it included.
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
    /// A driver that starts its processes through `host`.
    pub fn new(host: Arc<dyn Host>, settings: QemuSettings) -> Self {
        Self { host, settings }
    }

    /// Starts the vsock device and connects to it.
    async fn start_vsock(
        &self,
        processes: &mut Processes,
        dir: &Path,
    ) -> Result<UnixStream, DriverError> {
        let socket = dir.join("vhost-vsock");
        let hybrid = vsock(dir);
        let vm = format!(
            "guest-cid={GUEST_CID},socket={},uds-path={}",
            socket.display(),
            hybrid.display()
        );
        processes.remove_at_exit(socket.clone());
        processes.remove_at_exit(hybrid);
        let command = Command::new(&self.settings.vsock_device).arg("--vm").arg(vm);
        processes.start("vhost-device-vsock", command)?;
        processes.watched("serve its socket", self.settings.launch_deadline, connect(&socket)).await
    }

    async fn make(
        &self,
        processes: &mut Processes,
        vm: &VmPlan,
    ) -> Result<(u32, Qmp), DriverError> {
        let io = |source| DriverError::Io { program: NAME, source };
        let vsock = self.start_vsock(processes, &vm.dir).await?.into_std().map_err(io)?;
        vsock.set_nonblocking(false).map_err(io)?;
        let (qmp, theirs) = pair().map_err(io)?;
        let mut command = Command::new(&self.settings.program)
            .args(argv::argv(vm, self.settings.accel))
            .fd(fd::QMP, theirs)
            .fd(fd::VSOCK, OwnedFd::from(vsock));
        if let Some(console) = &vm.console {
            let (ours, theirs) = pair().map_err(io)?;
            BoundedLog::start(ours, console, CONSOLE_MAX)
                .map_err(DriverError::creating(console))?;
            command = command.fd(fd::CONSOLE, theirs);
        }
        let pid = match self.settings.accel {
            Accel::Kvm => processes.start_with_kvm(NAME, command)?,
            Accel::Tcg => processes.start(NAME, command)?,
        };
        let deadline = self.settings.launch_deadline;
        let greeting = Qmp::start(qmp, self.settings.command_deadline);
        let step = format!("create the VM ({})", self.settings.program.display());
        let (qmp, version) = processes.watched(&step, deadline, greeting).await?;
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

    async fn launch(&self, vm: &VmPlan) -> Result<Arc<dyn Vmm>> {
        check(vm)?;
        check_files(vm)?;
        if self.settings.accel == Accel::Kvm {
            check_kvm(vm)?;
        }
        let mut processes = Processes::new(Arc::clone(&self.host), vm)?;
        let (pid, qmp) = match self.make(&mut processes, vm).await {
            Ok(made) => made,
            Err(error) => {
                processes.stop().await?;
                return Err(error.into());
            }
        };
        let (processes, exited) = processes.supervise();
        let qmp = Arc::new(qmp);
        Ok(Arc::new(QemuVmm {
            pid,
            processes,
            exited,
            devices: Devices::new(vm, Arc::clone(&qmp)),
            qmp,
            vsock: vsock(&vm.dir),
            booted: AtomicBool::new(false),
            deadline: self.settings.command_deadline,
        }))
    }
}

/// A VM in QEMU.
#[derive(Debug)]
struct QemuVmm {
    pid: u32,
    processes: Arc<Processes>,
    exited: ExitWatch,
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

    fn processes(&self) -> Vec<ProcessRef> {
        self.processes.marks()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn attach(&self, device: Device) -> Result<()> {
        // Several commands, each with its own deadline.
        Ok(self
            .processes
            .watched("plug in a device", self.deadline * 4, self.devices.plug(device))
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
            .watched("unplug a device", self.deadline * 4, self.devices.unplug(id))
            .await?)
    }

    async fn boot(&self) -> Result<()> {
        if self.booted.swap(true, Ordering::AcqRel) {
            return Err(DriverError::State("is already running").into());
        }
        let boot = self.qmp.call("cont", json!({}));
        self.processes.watched("boot the VM", self.deadline * 2, boot).await?;
        Ok(())
    }

    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()> {
        let grow = self.devices.grow(vcpus, memory);
        // One command for each processor and two for a memory module.
        Ok(self.processes.watched("grow the VM", self.deadline * 4, grow).await?)
    }

    async fn stop(&self) -> Result<()> {
        Ok(self.processes.stop().await?)
    }

    async fn exited(&self) -> Exit {
        self.exited.wait().await
    }
}
