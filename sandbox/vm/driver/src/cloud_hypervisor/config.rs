//! A machine as cloud-hypervisor's `vm.create` takes it.

use std::path::Path;

use serde_json::{Value, json};

use crate::check::vsock;
use crate::vmm::Machine;

/// PCI segments, of one bus each.
const SEGMENTS: u16 = 2;
/// The guest's vsock address; each machine's vsock is its own, so that it need not be unique.
const GUEST_CID: u32 = 3;

/// The body of `vm.create`. `console` is where the serial line goes.
pub(super) fn config(machine: &Machine, console: Option<&Path>) -> Value {
    let serial = match console {
        Some(path) => json!({ "mode": "File", "file": path }),
        None => json!({ "mode": "Off" }),
    };
    let mut cmdline = machine.cmdline.clone();
    if console.is_some() {
        cmdline.push_str(" console=ttyS0");
    }
    let mut memory = json!({ "size": machine.memory, "shared": machine.shared_memory });
    if machine.max_memory > machine.memory {
        memory["hotplug_size"] = (machine.max_memory - machine.memory).into();
    }
    json!({
        "cpus": { "boot_vcpus": machine.vcpus, "max_vcpus": machine.max_vcpus },
        "memory": memory,
        "payload": {
            "kernel": machine.kernel, "initramfs": machine.initramfs, "cmdline": cmdline.trim(),
        },
        "platform": { "num_pci_segments": SEGMENTS },
        "vsock": { "cid": GUEST_CID, "socket": vsock(&machine.dir) },
        "rng": { "src": "/dev/urandom" },
        "balloon": { "size": 0, "deflate_on_oom": true, "free_page_reporting": true },
        "serial": serial,
        "console": { "mode": "Off" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::machine;

    #[test]
    fn says_what_the_machine_is() {
        let mut machine = machine(Path::new("/run/m"));
        let plain = config(&machine, None);
        assert_eq!(plain["cpus"], json!({ "boot_vcpus": 1, "max_vcpus": 2 }));
        let memory = json!({ "size": 256 << 20, "shared": false, "hotplug_size": 256 << 20 });
        assert_eq!(plain["memory"], memory);
        assert_eq!(plain["payload"]["cmdline"], "quiet panic=-1");
        assert_eq!(plain["vsock"], json!({ "cid": 3, "socket": "/run/m/vsock" }));
        assert_eq!(plain["serial"], json!({ "mode": "Off" }));

        machine.max_memory = machine.memory;
        machine.shared_memory = true;
        let whole = config(&machine, Some(Path::new("/run/m/fifo")));
        assert_eq!(whole["memory"], json!({ "size": 256 << 20, "shared": true }));
        assert_eq!(whole["payload"]["cmdline"], "quiet panic=-1 console=ttyS0");
        assert_eq!(whole["serial"], json!({ "mode": "File", "file": "/run/m/fifo" }));
    }
}
