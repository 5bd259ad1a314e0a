//! The settings of a VM handler.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_core::{Fault, Faults};
use serde::{Deserialize, Serialize};
use vm_driver::Hypervisor;

/// Deadlines in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// Starting the VMM, and each call to it.
    pub launch: u64,
    /// From the VM's boot to the agent's connection.
    pub boot: u64,
    /// One call to the agent.
    pub call: u64,
    /// Creating a container in the guest.
    pub create: u64,
    /// Stopping a VM.
    pub stop: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { launch: 20, boot: 60, call: 10, create: 60, stop: 10 }
    }
}

impl Timeouts {
    pub(crate) fn launch(&self) -> Duration {
        Duration::from_secs(self.launch)
    }

    pub(crate) fn boot(&self) -> Duration {
        Duration::from_secs(self.boot)
    }

    pub(crate) fn call(&self) -> Duration {
        Duration::from_secs(self.call)
    }

    pub(crate) fn create(&self) -> Duration {
        Duration::from_secs(self.create)
    }

    pub(crate) fn stop(&self) -> Duration {
        Duration::from_secs(self.stop)
    }
}

/// A VM handler's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmConfig {
    /// The virtual machine monitor (VMM).
    pub hypervisor: Hypervisor,
    /// Let QEMU emulate the processor where KVM runs no guest. Many times slower: for development
    /// and tests.
    pub allow_emulation: bool,
    /// The cloud-hypervisor program: an absolute path, or a name to find in `PATH`.
    pub cloud_hypervisor: PathBuf,
    /// The QEMU program, as above.
    pub qemu: PathBuf,
    /// The vhost-device-vsock program that VMs of QEMU need, as above.
    pub vsock_device: PathBuf,
    /// The virtiofsd program; by default it is searched for where distributions install it.
    pub virtiofsd: Option<PathBuf>,
    /// Directory of the guest's kernel and initramfs, as `bulkhead guest build` makes it.
    pub guest: PathBuf,
    /// Directory of the VMs' sockets and shared directories; each VM has a directory in it.
    pub root: PathBuf,
    /// Run the VMM as root, without capabilities, instead of as a user of its own.
    pub monitor_as_root: bool,
    /// Parameters for the guest's kernel, before the built-in ones.
    pub kernel_params: String,
    /// Processors of a Pod that sets no CPU limit.
    pub vcpus: u32,
    /// Maximum processors of a Pod; 0 for as many as the host has.
    pub max_vcpus: u32,
    /// Memory in MiB of a Pod that sets no memory limit.
    pub memory_mib: u64,
    /// Minimum memory of a VM in MiB.
    pub memory_floor_mib: u64,
    /// Memory in MiB for the guest's kernel and agent, on top of the Pod's limit.
    pub memory_overhead_mib: u64,
    /// Maximum memory of a VM in MiB; 0 for as much as the host has.
    pub max_memory_mib: u64,
    /// Log the guest kernel's console to the VM's directory, and its tail with a failed boot.
    pub console: bool,
    /// Debug messages of the agent on the console.
    pub debug: bool,
    /// Deadlines of each step.
    pub timeouts: Timeouts,
}

impl VmConfig {
    /// Directory for cached facts about this host.
    pub(crate) fn known(&self) -> PathBuf {
        self.root.join("known")
    }
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            hypervisor: Hypervisor::default(),
            allow_emulation: false,
            cloud_hypervisor: PathBuf::from("cloud-hypervisor"),
            qemu: PathBuf::from("qemu-system-x86_64"),
            vsock_device: PathBuf::from("vhost-device-vsock"),
            virtiofsd: None,
            guest: PathBuf::from("/usr/share/bulkhead/guest"),
            root: PathBuf::from("/run/bulkhead/vm"),
            monitor_as_root: false,
            kernel_params: String::new(),
            vcpus: 1,
            max_vcpus: 0,
            memory_mib: 2048,
            memory_floor_mib: 256,
            memory_overhead_mib: 64,
            max_memory_mib: 0,
            console: false,
            debug: false,
            timeouts: Timeouts::default(),
        }
    }
}

/// Maximum length of `root` in bytes: the paths of the sockets below it are limited to 107.
const ROOT_MAX: usize = 60;

/// Kernel parameters that isolation or the agent's connection to the host depend on.
const OWN_PARAMS: [&str; 6] = ["init", "rdinit", "root", "console", "panic", "initrd"];

impl VmConfig {
    /// All invalid settings.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        faults.check_program("cloud_hypervisor", &self.cloud_hypervisor);
        faults.check_program("qemu", &self.qemu);
        faults.check_program("vsock_device", &self.vsock_device);
        if let Some(virtiofsd) = &self.virtiofsd {
            faults.check_program("virtiofsd", virtiofsd);
        }
        let root = self.root.display();
        if !self.root.is_absolute() || self.root == Path::new("/") {
            faults.add("root", root, "must be an absolute path below /");
        } else if self.root.as_os_str().len() > ROOT_MAX {
            faults.add("root", root, "is longer than 60 bytes, too long for a VM's sockets");
        }
        if !self.guest.is_absolute() {
            faults.add("guest", self.guest.display(), "must be an absolute path");
        }
        self.size_faults(&mut faults);
        self.kernel_faults(&mut faults);
        let times = [
            ("timeouts.launch", self.timeouts.launch),
            ("timeouts.boot", self.timeouts.boot),
            ("timeouts.call", self.timeouts.call),
            ("timeouts.create", self.timeouts.create),
            ("timeouts.stop", self.timeouts.stop),
        ];
        for (key, seconds) in times {
            faults.check_seconds(key, seconds);
        }
        faults.into_vec()
    }

    fn size_faults(&self, faults: &mut Faults) {
        if !(1..=254).contains(&self.vcpus) {
            faults.add("vcpus", self.vcpus, "must be 1 to 254");
        }
        if self.max_vcpus > 254 || (self.max_vcpus != 0 && self.max_vcpus < self.vcpus) {
            faults.add("max_vcpus", self.max_vcpus, "must be 0 or vcpus to 254");
        }
        const TIB: u64 = 1 << 20;
        if !(128..=TIB).contains(&self.memory_floor_mib) {
            faults.add("memory_floor_mib", self.memory_floor_mib, "must be 128 MiB to 1 TiB");
        }
        if !(self.memory_floor_mib..=TIB).contains(&self.memory_mib) {
            faults.add("memory_mib", self.memory_mib, "must be memory_floor_mib to 1 TiB");
        }
        if self.memory_overhead_mib > TIB {
            faults.add("memory_overhead_mib", self.memory_overhead_mib, "must be at most 1 TiB");
        }
        if self.max_memory_mib != 0 && !(self.memory_mib..=TIB).contains(&self.max_memory_mib) {
            let reason = "must be 0 or memory_mib to 1 TiB";
            faults.add("max_memory_mib", self.max_memory_mib, reason);
        }
    }

    fn kernel_faults(&self, faults: &mut Faults) {
        if self.kernel_params.len() > 1024 || self.kernel_params.contains(|c: char| c.is_control())
        {
            let reason = "must be at most 1024 bytes without control characters";
            faults.add("kernel_params", &self.kernel_params, reason);
        }
        for word in self.kernel_params.split_ascii_whitespace() {
            let name = word.split('=').next().unwrap_or(word);
            if OWN_PARAMS.contains(&name) || word == "--" {
                faults.add("kernel_params", word, "is set by the shim; leave it out");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(VmConfig::default().faults(), []);
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let config = VmConfig {
            qemu: "bin/qemu".into(),
            root: "run".into(),
            guest: "guest".into(),
            kernel_params: "quiet init=/bin/sh".into(),
            vcpus: 0,
            max_vcpus: 300,
            memory_mib: 64,
            memory_floor_mib: 64,
            max_memory_mib: 32,
            timeouts: Timeouts { boot: 0, ..Timeouts::default() },
            ..VmConfig::default()
        };
        let keys: Vec<_> = config.faults().into_iter().map(|fault| fault.key).collect();
        let expected = [
            "qemu",
            "root",
            "guest",
            "vcpus",
            "max_vcpus",
            "memory_floor_mib",
            "max_memory_mib",
            "kernel_params",
            "timeouts.boot",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn survives_being_persisted() {
        let config = VmConfig { hypervisor: Hypervisor::CloudHypervisor, ..VmConfig::default() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"cloud-hypervisor\""), "{text}");
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    }
}
