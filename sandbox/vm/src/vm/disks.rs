//! Disks that are plugged into a running VM. Containers that have the same disk share it: it is
//! plugged in for the first of them and taken out with the last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use sandbox_core::cleanup::Steps;
use sandbox_core::{Error, Id};
use vm_driver::{Device, Disk, Vmm};
use vm_share::Tree;

use crate::error::VmError;

/// A VM's disks.
#[derive(Debug)]
pub(crate) struct Disks {
    vmm: Arc<dyn Vmm>,
    tree: Tree,
    /// UID the VMM runs as; `None` means root.
    user: Option<u32>,
    used: Mutex<BTreeMap<String, Entry>>,
}

/// A disk that some container uses, or that is being taken out.
#[derive(Debug, Default)]
struct Entry {
    users: BTreeSet<Id>,
    /// Locked while this one disk is plugged in or taken out, which the VMM's driver bounds in
    /// time: who needs it meanwhile has to wait for the one or the other.
    plugged: Arc<tokio::sync::Mutex<bool>>,
}

impl Disks {
    pub(super) fn new(vmm: Arc<dyn Vmm>, tree: Tree, user: Option<u32>) -> Self {
        Self { vmm, tree, user, used: Mutex::default() }
    }

    /// The ids of the disks that are in use.
    pub(super) fn ids(&self) -> BTreeSet<String> {
        self.used.lock().keys().cloned().collect()
    }

    /// Plugs in what `container` needs and no other has brought. When it fails, those before the
    /// failure stay until [`Disks::release`].
    pub(crate) async fn plug(&self, container: &Id, disks: &[Disk]) -> Result<(), VmError> {
        for disk in disks {
            let plugged = {
                let mut used = self.used.lock();
                let entry = used.entry(disk.id.clone()).or_default();
                entry.users.insert(container.clone());
                Arc::clone(&entry.plugged)
            };
            let mut plugged = plugged.lock().await;
            if !*plugged {
                self.attach(disk).await?;
                *plugged = true;
            }
        }
        Ok(())
    }

    /// Takes out the disks that no container but `container` uses. Idempotent.
    pub(super) async fn release(&self, container: &Id) -> Result<(), VmError> {
        let unused: Vec<String> = {
            let mut used = self.used.lock();
            let released = used.iter_mut().filter_map(|(disk, entry)| {
                (entry.users.remove(container) && entry.users.is_empty()).then(|| disk.clone())
            });
            released.collect()
        };
        let mut steps = Steps::<VmError>::default();
        for disk in unused {
            steps.take(self.take_out(&disk).await);
        }
        steps.result()
    }

    /// Takes a disk out unless a container uses it again.
    async fn take_out(&self, disk: &str) -> Result<(), VmError> {
        let Some(plugged) = self.used.lock().get(disk).map(|entry| Arc::clone(&entry.plugged))
        else {
            return Ok(());
        };
        let mut plugged = plugged.lock().await;
        if !self.unused(disk) {
            return Ok(());
        }
        let mut steps = Steps::<VmError>::default();
        if std::mem::take(&mut *plugged) {
            steps.take(self.vmm.detach(disk).await);
            steps.take(self.tree.remove_disk(disk).map_err(Error::from));
        }
        let mut used = self.used.lock();
        if used.get(disk).is_some_and(|entry| entry.users.is_empty()) {
            used.remove(disk);
        }
        drop(used);
        steps.result()
    }

    fn unused(&self, disk: &str) -> bool {
        self.used.lock().get(disk).is_some_and(|entry| entry.users.is_empty())
    }

    /// Plugs a disk in by the path that the VMM may open.
    async fn attach(&self, disk: &Disk) -> Result<(), VmError> {
        let path = self.tree.bind_disk(disk, self.user).map_err(Error::from)?;
        let attached = self.vmm.attach(Device::Disk(Disk { path, ..disk.clone() })).await;
        if attached.is_err() {
            if let Err(left) = self.tree.remove_disk(&disk.id) {
                tracing::warn!("after disk {} was not plugged in: {}", disk.id, Error::from(left));
            }
        }
        Ok(attached?)
    }
}
