//! The body of cloud-hypervisor's `vm.create`.

use std::path::Path;

use serde_json::{Value, json};

use crate::check::vsock;
use crate::vmm::VmPlan;

/// PCI segments, of one bus each.
const SEGMENTS: u16 = 2;
/// The guest's vsock address; it need not be unique, since each VM has a vsock device of its own.
const GUEST_CID: u32 = 3;

/// The body of `vm.create`. `console` is the file of the serial console.
pub(super) fn config(vm: &VmPlan, console: Option<&Path>) -> Value {
    let serial = match console {
        Some(path) => json!({ "mode": "File", "file": path }),
        None => json!({ "mode": "Off" }),
    };
    let mut cmdline = vm.cmdline.clone();
    if console.is_some() {
        cmdline.push_str(" console=ttyS0");
    }
    let mut memory = json!({ "size": vm.memory, "shared": vm.shared_memory });
    if vm.max_memory > vm.memory {
        memory["hotplug_size"] = (vm.max_memory - vm.memory).into();
    }
    json!({
        "cpus": { "boot_vcpus": vm.vcpus, "max_vcpus": vm.max_vcpus },
        "memory": memory,
        "payload": {
            "kernel": vm.kernel, "initramfs": vm.initramfs, "cmdline": cmdline.trim(),
        },
        "platform": { "num_pci_segments": SEGMENTS },
        "vsock": { "cid": GUEST_CID, "socket": vsock(&vm.dir) },
        "rng": { "src": "/dev/urandom" },
        "balloon": { "size": 0, "deflate_on_oom": true, "free_page_reporting": true },
        "serial": serial,
        "console": { "mode": "Off" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::vm;

    #[test]
    fn describes_the_vm() {
        let mut vm = vm(Path::new("/run/m"));
        let plain = config(&vm, None);
        assert_eq!(plain["cpus"], json!({ "boot_vcpus": 1, "max_vcpus": 2 }));
        let memory = json!({ "size": 256 << 20, "shared": false, "hotplug_size": 256 << 20 });
        assert_eq!(plain["memory"], memory);
        assert_eq!(plain["payload"]["cmdline"], "quiet panic=-1");
        assert_eq!(plain["vsock"], json!({ "cid": 3, "socket": "/run/m/vsock" }));
        assert_eq!(plain["serial"], json!({ "mode": "Off" }));

        vm.max_memory = vm.memory;
        vm.shared_memory = true;
        let whole = config(&vm, Some(Path::new("/run/m/fifo")));
        assert_eq!(whole["memory"], json!({ "size": 256 << 20, "shared": true }));
        assert_eq!(whole["payload"]["cmdline"], "quiet panic=-1 console=ttyS0");
        assert_eq!(whole["serial"], json!({ "mode": "File", "file": "/run/m/fifo" }));
    }
}
