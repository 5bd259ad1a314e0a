//! A running VM's size. One task grows it to what its containers are limited to.

use std::sync::Arc;

use parking_lot::Mutex;
use sandbox_core::{Error, Resources};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use vm_driver::{Capabilities, Vmm};

use crate::config::VmConfig;
use crate::error::VmError;
use crate::guest::Guest;
use crate::size::{Demand, Limit, Size};

/// The limits of a VM's containers.
#[derive(Debug)]
pub(crate) struct Sizing {
    demand: Arc<Mutex<Demand>>,
    requests: mpsc::UnboundedSender<Request>,
    growing: JoinHandle<()>,
}

/// Dropped when the VM is as large as it should be, or can be.
type Request = oneshot::Sender<()>;

/// What grows a VM.
#[derive(Debug)]
pub(super) struct Grower {
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) guest: Arc<Guest>,
    pub(super) capabilities: Capabilities,
    pub(super) config: Arc<VmConfig>,
    pub(super) size: Size,
    /// The size it can grow to.
    pub(super) most: Size,
}

impl Drop for Sizing {
    fn drop(&mut self) {
        self.growing.abort();
    }
}

impl Sizing {
    pub(super) fn new(grower: Grower) -> Self {
        let demand = Arc::new(Mutex::new(Demand::default()));
        let (requests, received) = mpsc::unbounded_channel();
        let growing = tokio::spawn(grower.run(Arc::clone(&demand), received));
        Self { demand, requests, growing }
    }

    /// Counts container `id`, and waits until the VM was made larger where its containers call for
    /// it. What cannot be had is logged: the container's own limit holds all the same.
    pub(crate) async fn fit(&self, id: &str, limit: Limit) {
        self.demand.lock().set(id, limit);
        self.settle().await;
    }

    /// As [`Sizing::fit`], for limits that change.
    pub(crate) async fn update(&self, id: &str, resources: &Resources) {
        {
            let mut demand = self.demand.lock();
            let limit = demand.get(id).updated(resources);
            demand.set(id, limit);
        }
        self.settle().await;
    }

    /// Stops counting container `id`.
    pub(super) fn forget(&self, id: &str) {
        self.demand.lock().remove(id);
    }

    async fn settle(&self) {
        let (request, settled) = oneshot::channel();
        // The task lives as long as `self`; without it nothing grows.
        let _ = self.requests.send(request);
        let _ = settled.await;
    }
}

impl Grower {
    async fn run(
        mut self,
        demand: Arc<Mutex<Demand>>,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) {
        while let Some(request) = requests.recv().await {
            let wanted = demand.lock().size(&self.config, self.size, self.most);
            if let Err(error) = self.grow(wanted).await {
                tracing::warn!("the VM stays at {:?}: {}", self.size, Error::from(error));
            }
            drop(request);
        }
    }

    async fn grow(&mut self, wanted: Size) -> Result<(), VmError> {
        if wanted == self.size {
            return Ok(());
        }
        let mut size = wanted;
        if !self.capabilities.grow_memory {
            size.memory = self.size.memory;
        }
        if !self.capabilities.grow_vcpus {
            size.vcpus = self.size.vcpus;
        }
        if size == self.size {
            let driver = self.capabilities.name;
            tracing::warn!(
                "a Pod of {driver} cannot grow while it runs; its size is set when it starts"
            );
            return Ok(());
        }
        self.vmm.grow(size.vcpus, size.memory).await?;
        self.guest.online(size.vcpus).await?;
        self.size = size;
        tracing::info!("the VM has {} processors and {} bytes now", size.vcpus, size.memory);
        Ok(())
    }
}
