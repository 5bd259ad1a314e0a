//! The interface to a virtual machine monitor (VMM), and the plan of a VM.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_host::{Exit, ProcessRef, Result};

/// How much of a guest's console is kept, in bytes. The guest is not trusted to write less.
pub(crate) const CONSOLE_MAX: u64 = 4 << 20;

/// A VM to create: pure data, planned from the Pod's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPlan {
    /// The VM's own directory (0700), for sockets and logs. At most 90
    /// bytes: the path of a Unix socket is limited to 107.
    pub dir: PathBuf,
    /// The Pod's network namespace, which the VMM runs in.
    pub netns: Option<PathBuf>,
    /// An uncompressed ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// The initial RAM file system with the agent.
    pub initramfs: PathBuf,
    /// The kernel's command line; the driver appends its own part (the console).
    pub cmdline: String,
    /// Processors to boot with.
    pub vcpus: u32,
    /// Processors it can grow to.
    pub max_vcpus: u32,
    /// Memory to boot with, in bytes; a multiple of 128 MiB where it is to grow.
    pub memory: u64,
    /// Memory it can grow to, in bytes.
    pub max_memory: u64,
    /// Whether a vhost-user device (virtio-fs) needs shared memory.
    pub shared_memory: bool,
    /// UID the VMM runs as; `None` means root. It must be able to search `dir`.
    pub user: Option<u32>,
    /// Directories of disks: besides system files, the VMM may open files below these and `dir`
    /// only.
    pub open: Vec<PathBuf>,
    /// The file that the kernel's console is logged to; `None` means no console.
    pub console: Option<PathBuf>,
}

/// Something to plug into a VM, before or after it boots.
#[derive(Debug)]
pub enum Device {
    /// A network interface.
    Nic(Nic),
    /// A block device.
    Disk(Disk),
    /// A virtio-fs share.
    Share(Share),
}

impl Device {
    /// Its id in the VM.
    pub fn id(&self) -> &str {
        match self {
            Self::Nic(nic) => &nic.id,
            Self::Disk(disk) => &disk.id,
            Self::Share(share) => &share.id,
        }
    }
}

/// A network interface on an open tap.
#[derive(Debug)]
pub struct Nic {
    /// Unique in the VM: letters and digits.
    pub id: String,
    /// The address the guest sees.
    pub mac: [u8; 6],
    /// The tap's MTU.
    pub mtu: u32,
    /// The tap, opened with IFF_VNET_HDR and one queue.
    pub tap: OwnedFd,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Unique in the VM, and the serial number by which the guest finds it: letters and
    /// digits, at most 20 bytes (virtio's limit).
    pub id: String,
    /// An image in raw format or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A virtio-fs device, served by a process that listens on `socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Unique in the VM: letters and digits.
    pub id: String,
    /// The tag by which the guest mounts it.
    pub tag: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
}

/// What a driver's VMs support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The driver's name in the configuration.
    pub name: &'static str,
    /// Whether guests run on emulated processors, many times slower.
    pub emulated: bool,
    /// Maximum number of disks of a VM; they can be plugged in while it runs.
    pub disks: usize,
    /// Whether a running VM can get more memory.
    pub grow_memory: bool,
    /// Whether a running VM can get more processors.
    pub grow_vcpus: bool,
    /// Maximum number of bytes that the guest may write to a vsock stream at once, where the device
    /// model stalls on more.
    pub stream_write_max: Option<u32>,
}

/// Starts VMs.
#[async_trait]
pub trait Driver: Debug + Send + Sync {
    /// What its VMs support.
    fn capabilities(&self) -> Capabilities;

    /// Starts the VMM and creates the VM without booting it. On failure every process is stopped.
    async fn launch(&self, vm: &VmPlan) -> Result<Arc<dyn Vmm>>;
}

/// The VMM of one VM. Dropping it kills nothing: call [`Vmm::stop`].
#[async_trait]
pub trait Vmm: Debug + Send + Sync {
    /// The VMM's process id, which stands for the VM.
    fn pid(&self) -> u32;

    /// All processes of the VM, for the record.
    fn processes(&self) -> Vec<ProcessRef>;

    /// The hybrid vsock's unix socket: connect and send `CONNECT <port>\n` to reach the guest;
    /// the guest's port P of the host is the socket `<this>_P`.
    fn vsock(&self) -> &Path;

    /// Plugs a device in, before or after the VM boots.
    async fn attach(&self, device: Device) -> Result<()>;

    /// Unplugs the disk `id` from the running VM. Succeeds when there is none.
    async fn detach(&self, id: &str) -> Result<()>;

    /// Boots the VM.
    async fn boot(&self) -> Result<()>;

    /// Grows the running VM to this many processors and bytes. It never shrinks.
    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()>;

    /// Kills all processes of the VM and waits for their exit. Idempotent.
    async fn stop(&self) -> Result<()>;

    /// Resolves when the VMM's process has exited.
    async fn exited(&self) -> Exit;
}
