//! Hotplug of devices, memory and processors in QEMU.

use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::argv::{BRIDGE_SLOTS, BRIDGES, MODULES_MAX};
use crate::check::{check_disk, check_share};
use crate::error::DriverError;
use crate::growth::{Growth, modules};
use crate::place::Places;
use crate::qmp::Qmp;
use crate::vmm::{Device, Disk, Nic, Share, VmPlan};

/// The name in the configuration.
pub(super) const NAME: &str = "qemu";
/// Slots for devices.
pub(super) const PLACES: usize = BRIDGES * BRIDGE_SLOTS;

/// A socket for a processor, as `query-hotpluggable-cpus` lists it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CpuPlace {
    r#type: String,
    props: Map<String, Value>,
    /// Set when it is occupied.
    qom_path: Option<String>,
}

/// The devices, memory and processors of one VM.
#[derive(Debug)]
pub(super) struct Devices {
    qmp: Arc<Qmp>,
    places: Places,
    growth: tokio::sync::Mutex<Growth>,
}

impl Devices {
    /// The devices of a new VM.
    pub(super) fn new(vm: &VmPlan, qmp: Arc<Qmp>) -> Self {
        let growth = Growth::of(vm, modules(vm, MODULES_MAX));
        let growth = tokio::sync::Mutex::new(growth);
        Self { qmp, places: Places::new(PLACES), growth }
    }

    /// Whether the device `id` is plugged in.
    pub(super) fn has(&self, id: &str) -> bool {
        self.places.has(id)
    }

    /// Plugs `device` into a free slot.
    pub(super) async fn plug(&self, device: Device) -> Result<(), DriverError> {
        let id = device.id().to_owned();
        let place = self.places.take(&id)?;
        let bus = format!("bridge{}", place / BRIDGE_SLOTS);
        let slot = format!("{:#x}", place % BRIDGE_SLOTS + 1);
        let place = json!({ "id": device_id(&id), "bus": bus, "addr": slot });
        let plugged = match &device {
            Device::Nic(nic) => plug_nic(&self.qmp, nic, place).await,
            Device::Disk(disk) => plug_disk(&self.qmp, disk, place).await,
            Device::Share(share) => plug_share(&self.qmp, share, place).await,
        };
        if plugged.is_err() {
            self.places.free(&id);
        }
        plugged
    }

    /// Unplugs a disk.
    pub(super) async fn unplug(&self, id: &str) -> Result<(), DriverError> {
        self.qmp.unplug(&device_id(id)).await?;
        self.qmp.call("blockdev-del", json!({ "node-name": node(id) })).await?;
        self.places.free(id);
        Ok(())
    }

    /// Adds processors and memory up to `vcpus` and `memory`.
    pub(super) async fn grow(&self, vcpus: u32, memory: u64) -> Result<(), DriverError> {
        let mut growth = self.growth.lock().await;
        growth.check(vcpus, memory)?;
        let size = growth.next_module(memory);
        if size > 0 {
            let at = growth.modules();
            let backend = format!("module{at}");
            let made = json!({ "qom-type": "memory-backend-memfd", "id": backend, "size": size, "share": true });
            self.qmp.call("object-add", made).await?;
            let module =
                json!({ "driver": "pc-dimm", "id": format!("dimm{at}"), "memdev": backend });
            let undo = ("object-del", json!({ "id": backend }));
            or_undo(&self.qmp, self.qmp.call("device_add", module).await, undo).await?;
            growth.got_module(size);
        }
        if vcpus > growth.vcpus() {
            let free = free_cpus(&self.qmp).await?;
            for (place, at) in free.into_iter().zip(growth.vcpus()..vcpus) {
                let mut cpu = place.props;
                cpu.insert("driver".into(), place.r#type.into());
                cpu.insert("id".into(), format!("cpu{at}").into());
                self.qmp.call("device_add", cpu.into()).await?;
                growth.got_vcpus(at + 1);
            }
        }
        Ok(())
    }
}

async fn free_cpus(qmp: &Qmp) -> Result<Vec<CpuPlace>, DriverError> {
    let call = "query-hotpluggable-cpus";
    let answer = qmp.call(call, json!({})).await?;
    let mut places: Vec<CpuPlace> = serde_json::from_value(answer).map_err(|error| {
        DriverError::Answer { program: NAME, call: call.into(), reason: error.to_string() }
    })?;
    // QEMU lists the highest first.
    places.reverse();
    places.retain(|place| place.qom_path.is_none());
    Ok(places)
}

async fn plug_nic(qmp: &Qmp, nic: &Nic, place: Value) -> Result<(), DriverError> {
    let host = format!("net-{}", nic.id);
    let handle = format!("tap-{}", nic.id);
    qmp.call_with("getfd", json!({ "fdname": handle }), Some(nic.tap.as_fd())).await?;
    let tap = json!({ "type": "tap", "id": host, "fd": handle, "vhost": false });
    let undo = ("closefd", json!({ "fdname": handle }));
    or_undo(qmp, qmp.call("netdev_add", tap).await, undo).await?;
    let mac: Vec<String> = nic.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    // The network boot ROM is not used, and not always installed.
    let device = json!({
        "driver": "virtio-net-pci", "netdev": host, "mac": mac.join(":"), "host_mtu": nic.mtu, "romfile": "",
    });
    let undo = ("netdev_del", json!({ "id": host }));
    or_undo(qmp, qmp.call("device_add", merge(device, place)).await, undo).await
}

async fn plug_disk(qmp: &Qmp, disk: &Disk, place: Value) -> Result<(), DriverError> {
    let node = node(&disk.id);
    let kind = if check_disk(disk)?.is_block_device() { "host_device" } else { "file" };
    let image = json!({
        "driver": "raw", "node-name": node, "read-only": disk.read_only, "discard": "unmap",
        "file": { "driver": kind, "filename": path(&disk.path)? },
    });
    qmp.call("blockdev-add", image).await?;
    let device = json!({ "driver": "virtio-blk-pci", "drive": node, "serial": disk.id });
    let undo = ("blockdev-del", json!({ "node-name": node }));
    or_undo(qmp, qmp.call("device_add", merge(device, place)).await, undo).await
}

async fn plug_share(qmp: &Qmp, share: &Share, place: Value) -> Result<(), DriverError> {
    check_share(share)?;
    let channel = format!("share-{}", share.id);
    let socket = json!({ "type": "unix", "data": { "path": path(&share.socket)? } });
    let backend = json!({ "type": "socket", "data": { "addr": socket, "server": false } });
    qmp.call("chardev-add", json!({ "id": channel, "backend": backend })).await?;
    let device = json!({
        "driver": "vhost-user-fs-pci", "chardev": channel, "tag": share.tag, "queue-size": 1024,
    });
    let undo = ("chardev-remove", json!({ "id": channel }));
    or_undo(qmp, qmp.call("device_add", merge(device, place)).await, undo).await
}

/// Returns `outcome`; on failure the previous step is undone first.
async fn or_undo(
    qmp: &Qmp,
    outcome: Result<Value, DriverError>,
    undo: (&str, Value),
) -> Result<(), DriverError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => {
            if let Err(left) = qmp.call(undo.0, undo.1).await {
                tracing::warn!("undoing a failed hotplug: {}", sandbox_host::Error::from(left));
            }
            Err(error)
        }
    }
}

fn merge(device: Value, place: Value) -> Value {
    let both = [device, place].into_iter().filter_map(|half| match half {
        Value::Object(map) => Some(map),
        _ => None,
    });
    both.flatten().collect::<Map<_, _>>().into()
}

/// A valid id for QEMU, which has to begin with a letter.
fn device_id(id: &str) -> String {
    format!("dev-{id}")
}

fn node(id: &str) -> String {
    format!("disk-{id}")
}

/// A path as a JSON string.
fn path(path: &Path) -> Result<&str, DriverError> {
    path.to_str().ok_or_else(|| DriverError::File {
        step: "naming",
        path: path.into(),
        source: std::io::Error::other("the path is not UTF-8"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_sockets_are_read() {
        let answer = json!([{
            "props": { "core-id": 1, "thread-id": 0, "node-id": 0, "socket-id": 0 },
            "vcpus-count": 1, "type": "max-x86_64-cpu"
        }, {
            "props": { "core-id": 0, "thread-id": 0, "node-id": 0, "socket-id": 0 },
            "vcpus-count": 1, "qom-path": "/machine/unattached/device[0]", "type": "max-x86_64-cpu"
        }]);
        let places: Vec<CpuPlace> = serde_json::from_value(answer).unwrap();
        assert!(places[0].qom_path.is_none() && places[1].qom_path.is_some());
        assert_eq!(places[0].props["core-id"], 1);
    }

    #[test]
    fn a_device_is_merged_with_its_slot() {
        let both = merge(json!({ "driver": "a" }), json!({ "id": "b", "bus": "c" }));
        assert_eq!(both, json!({ "driver": "a", "id": "b", "bus": "c" }));
    }
}
