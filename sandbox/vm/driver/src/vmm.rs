//! What the backend asks of a virtual machine monitor (VMM), and what a VM is made of.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::host::ProcessMark;
use sandbox_core::{Exit, Result};

/// How much of a guest's console is kept, in bytes: what it writes is the guest's choice.
pub(crate) const CONSOLE_MAX: u64 = 4 << 20;

/// A machine to make: pure data, planned from the Pod's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The machine's own directory (0700), for sockets and logs. Short: a socket's path holds
    /// at most 107 bytes.
    pub dir: PathBuf,
    /// The Pod's network namespace; the VMM runs in it, where it can reach nobody but the Pod.
    pub netns: Option<PathBuf>,
    /// An uncompressed ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// The initial RAM file system with the agent.
    pub initramfs: PathBuf,
    /// The kernel's command line, without the part that is the driver's own (its console).
    pub cmdline: String,
    /// Processors to boot with.
    pub vcpus: u32,
    /// Processors it can grow to.
    pub max_vcpus: u32,
    /// Memory to boot with, in bytes; a multiple of 128 MiB where it is to grow.
    pub memory: u64,
    /// Memory it can grow to, in bytes.
    pub max_memory: u64,
    /// Whether a vhost-user device (virtio-fs) will need the memory shared.
    pub shared_memory: bool,
    /// Whom the VMM runs as; root without one. It must be able to come to `dir`.
    pub user: Option<u32>,
    /// Where disks are: the monitor opens files below these and in its own directory, and no
    /// other but those of the system.
    pub open: Vec<PathBuf>,
    /// The kernel's console goes to this file; without one there is no console.
    pub console: Option<PathBuf>,
}

/// Something to plug into a machine, before or after it boots.
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
    /// What it is called in its machine.
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
    /// Unique in the machine: letters and digits.
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
    /// Unique in the machine, and the serial number by which the guest finds it: letters and
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
    /// Unique in the machine: letters and digits.
    pub id: String,
    /// The tag by which the guest mounts it.
    pub tag: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
}

/// What a driver's machines can and cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The driver's name, as the configuration writes it.
    pub name: &'static str,
    /// Whether guests run on emulated processors, many times slower.
    pub emulated: bool,
    /// Whether disks can be plugged into a running machine, and how many in all.
    pub disks: usize,
    /// Whether a running machine can get more memory.
    pub grow_memory: bool,
    /// Whether a running machine can get more processors.
    pub grow_vcpus: bool,
    /// The most bytes the guest may write to a vsock stream at once, where the device model
    /// stalls on more.
    pub stream_write_max: Option<u32>,
}

/// Starts machines.
#[async_trait]
pub trait Driver: Debug + Send + Sync {
    /// What its machines can do.
    fn capabilities(&self) -> Capabilities;

    /// Starts the VMM and makes the machine, which does not run yet. When it fails, nothing is
    /// left running.
    async fn launch(&self, machine: &Machine) -> Result<Arc<dyn Vmm>>;
}

/// A machine's monitor. Dropping it kills nothing: call [`Vmm::stop`].
#[async_trait]
pub trait Vmm: Debug + Send + Sync {
    /// The process that stands for the machine.
    fn pid(&self) -> u32;

    /// Every process that lives for the machine, for the record.
    fn processes(&self) -> Vec<ProcessMark>;

    /// The hybrid vsock's unix socket: connect and say `CONNECT <port>\n` to reach the guest;
    /// the guest's port P of the host is the socket `<this>_P`.
    fn vsock(&self) -> &Path;

    /// Plugs a device in, before or after the machine boots.
    async fn attach(&self, device: Device) -> Result<()>;

    /// Unplugs the disk `id` from the running machine. Fine when it is not there.
    async fn detach(&self, id: &str) -> Result<()>;

    /// Lets the machine run.
    async fn boot(&self) -> Result<()>;

    /// Grows the running machine to this many processors and bytes; what it has already is
    /// never taken away.
    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()>;

    /// Ends the machine and every process of it, at once. Idempotent.
    async fn stop(&self) -> Result<()>;

    /// Resolves when the VMM's process has ended, at once if it already has.
    async fn exited(&self) -> Exit;
}
