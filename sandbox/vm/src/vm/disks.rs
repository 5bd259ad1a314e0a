//! Disks that are plugged into a running VM. Containers that have the same disk share it: it is
//! plugged in for the first of them and taken out with the last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use sandbox_core::{Error, Id};
use sandbox_host::cleanup::Steps;
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
    /// Whether it is plugged in. Locked while it is being plugged in or taken out, since another
    /// container that uses it has to wait for that; the VMM's driver bounds it in time.
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use async_trait::async_trait;
    use sandbox_core::{Exit, Kind, Result};
    use sandbox_host::{FakeHost, ProcessRef};
    use tokio::sync::Semaphore;

    use super::*;

    /// Plugs disks in when it has a permit for each, and refuses the disk `bad`.
    #[derive(Debug)]
    struct FakeVmm {
        permits: Semaphore,
        calls: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Vmm for FakeVmm {
        fn pid(&self) -> u32 {
            1
        }

        fn processes(&self) -> Vec<ProcessRef> {
            Vec::new()
        }

        fn vsock(&self) -> &Path {
            Path::new("/vsock")
        }

        async fn attach(&self, device: Device) -> Result<()> {
            if device.id() == "bad" {
                return Err(Error::new(Kind::Unavailable, "no"));
            }
            self.permits.acquire().await.unwrap().forget();
            self.calls.lock().push(format!("attach {}", device.id()));
            Ok(())
        }

        async fn detach(&self, id: &str) -> Result<()> {
            self.calls.lock().push(format!("detach {id}"));
            Ok(())
        }

        async fn boot(&self) -> Result<()> {
            Ok(())
        }

        async fn grow(&self, _vcpus: u32, _memory: u64) -> Result<()> {
            Ok(())
        }

        async fn stop(&self) -> Result<()> {
            Ok(())
        }

        async fn exited(&self) -> Exit {
            std::future::pending().await
        }
    }

    fn disks(permits: usize) -> (tempfile::TempDir, Arc<FakeVmm>, Disks) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("disks")).unwrap();
        let vmm = Arc::new(FakeVmm { permits: Semaphore::new(permits), calls: Mutex::default() });
        let tree = Tree::at(Arc::new(FakeHost::new([])), dir.path());
        let disks = Disks::new(Arc::clone(&vmm) as Arc<dyn Vmm>, tree, None);
        (dir, vmm, disks)
    }

    fn disk(id: &str) -> Disk {
        Disk { id: id.to_owned(), path: "/image".into(), read_only: true }
    }

    fn id(id: &str) -> Id {
        Id::new(id).unwrap()
    }

    #[tokio::test]
    async fn a_disk_is_there_from_its_first_user_to_its_last() {
        let (_dir, vmm, disks) = disks(9);
        disks.plug(&id("one"), &[disk("a"), disk("b")]).await.unwrap();
        disks.plug(&id("two"), &[disk("a")]).await.unwrap();
        disks.release(&id("one")).await.unwrap();
        disks.release(&id("one")).await.unwrap();
        assert_eq!(disks.ids(), BTreeSet::from(["a".to_owned()]));
        disks.release(&id("two")).await.unwrap();
        assert_eq!(*vmm.calls.lock(), ["attach a", "attach b", "detach b", "detach a"]);
        assert!(disks.ids().is_empty());
    }

    #[tokio::test]
    async fn a_failure_is_released_with_what_came_before_it() {
        let (_dir, vmm, disks) = disks(9);
        for _ in 0..2 {
            let failed = disks.plug(&id("one"), &[disk("a"), disk("bad")]).await.unwrap_err();
            assert_eq!(failed.to_string(), "no");
            disks.release(&id("one")).await.unwrap();
            assert!(disks.ids().is_empty());
        }
        assert_eq!(*vmm.calls.lock(), ["attach a", "detach a", "attach a", "detach a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_stalls_holds_up_no_other() {
        let (_dir, vmm, disks) = disks(1);
        disks.plug(&id("one"), &[disk("a")]).await.unwrap();
        let stalled = id("two");
        let wanted = [disk("b")];
        let mut plug = std::pin::pin!(disks.plug(&stalled, &wanted));
        assert!(tokio::time::timeout(Duration::from_secs(1), plug.as_mut()).await.is_err());
        disks.release(&id("one")).await.unwrap();
        assert_eq!(*vmm.calls.lock(), ["attach a", "detach a"]);
        assert_eq!(disks.ids(), BTreeSet::from(["b".to_owned()]));
    }
}
