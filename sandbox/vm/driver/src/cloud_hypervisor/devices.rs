//! Hotplug of devices, memory and processors in cloud-hypervisor.

use std::os::fd::AsFd;

use std::time::Duration;

use serde_json::{Value, json};

use super::events::Removals;
use crate::check::{check_disk, check_share};
use crate::error::DriverError;
use crate::growth::{Growth, modules};
use crate::place::Places;
use crate::rest::Rest;
use crate::vmm::{Device, Disk, Nic, Share, VmPlan};

/// The name in the configuration, and of the program.
pub(super) const NAME: &str = "cloud-hypervisor";
/// Slots of the first PCI segment that the built-in devices leave free.
const FIRST_SEGMENT: usize = 32 - 4;
/// Slots of both segments: the second one's slot 0 is its root.
pub(super) const PLACES: usize = FIRST_SEGMENT + 31;
/// The maximum number of memory modules in a VM.
const MODULES_MAX: u64 = 8;

/// The devices, memory and processors of one VM.
#[derive(Debug)]
pub(super) struct Devices {
    rest: Rest,
    removals: Removals,
    places: Places,
    growth: tokio::sync::Mutex<Growth>,
    deadline: Duration,
}

impl Devices {
    /// The devices of a new VM. `deadline` bounds the guest's part in unplugging.
    pub(super) fn new(vm: &VmPlan, rest: Rest, removals: Removals, deadline: Duration) -> Self {
        let growth = Growth::of(vm, modules(vm, MODULES_MAX));
        let growth = tokio::sync::Mutex::new(growth);
        Self { rest, removals, places: Places::new(PLACES), growth, deadline }
    }

    /// Whether the device `id` is plugged in.
    pub(super) fn has(&self, id: &str) -> bool {
        self.places.has(id)
    }

    /// Plugs `device` into a free slot.
    pub(super) async fn plug(&self, device: Device) -> Result<(), DriverError> {
        let id = device.id().to_owned();
        let segment = u16::from(self.places.take(&id)? >= FIRST_SEGMENT);
        let plugged = match device {
            Device::Nic(nic) => self.plug_nic(&nic, segment).await,
            Device::Disk(disk) => self.plug_disk(&disk, segment).await,
            Device::Share(share) => self.plug_share(&share, segment).await,
        };
        if plugged.is_err() {
            self.places.free(&id);
        }
        plugged
    }

    async fn plug_nic(&self, nic: &Nic, segment: u16) -> Result<(), DriverError> {
        let mac: Vec<String> = nic.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        // It reads the MTU from the tap, which is in its own network namespace; setting one would
        // need CAP_NET_ADMIN.
        let body = json!({
            "id": name(&nic.id), "pci_segment": segment, "mac": mac.join(":"), "num_queues": 2, "queue_size": 256,
        });
        self.rest.put("vm.add-net", Some(body), Some(nic.tap.as_fd())).await
    }

    async fn plug_disk(&self, disk: &Disk, segment: u16) -> Result<(), DriverError> {
        check_disk(disk)?;
        let body = json!({
            "id": name(&disk.id), "pci_segment": segment, "path": disk.path, "readonly": disk.read_only,
            "serial": disk.id, "image_type": "Raw",
        });
        self.rest.put("vm.add-disk", Some(body), None).await
    }

    async fn plug_share(&self, share: &Share, segment: u16) -> Result<(), DriverError> {
        check_share(share)?;
        let body = json!({
            "id": name(&share.id), "pci_segment": segment, "tag": share.tag, "socket": share.socket,
            "num_queues": 1, "queue_size": 1024,
        });
        self.rest.put("vm.add-fs", Some(body), None).await
    }

    /// Unplugs a disk and waits until the guest has released it.
    pub(super) async fn unplug(&self, id: &str) -> Result<(), DriverError> {
        let device = name(id);
        let gone = self.removals.of(&device);
        self.rest.put("vm.remove-device", Some(json!({ "id": device })), None).await?;
        match tokio::time::timeout(self.deadline, gone).await {
            Ok(Ok(())) => {
                self.places.free(id);
                Ok(())
            }
            Ok(Err(_)) => Err(DriverError::Closed { program: NAME, call: "removal".to_owned() }),
            Err(_) => {
                let step = format!("release {device}");
                Err(DriverError::Deadline { program: "the guest", step, after: self.deadline })
            }
        }
    }

    /// Adds processors and memory up to `vcpus` and `memory`.
    pub(super) async fn grow(&self, vcpus: u32, memory: u64) -> Result<(), DriverError> {
        let mut growth = self.growth.lock().await;
        growth.check(vcpus, memory)?;
        let resize = |size: Value| self.rest.put("vm.resize", Some(size), None);
        let module = growth.next_module(memory);
        if module > 0 {
            resize(json!({ "desired_ram": growth.memory() + module })).await?;
            growth.got_module(module);
        }
        if vcpus > growth.vcpus() {
            resize(json!({ "desired_vcpus": vcpus })).await?;
            growth.got_vcpus(vcpus);
        }
        Ok(())
    }
}

/// A device's name. The prefix keeps it apart from cloud-hypervisor's own devices.
fn name(id: &str) -> String {
    format!("dev-{id}")
}
