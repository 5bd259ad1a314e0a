//! What runs on the host for a VM.

use std::sync::Arc;

use sandbox_core::{Error, Exit};
use sandbox_host::ProcessRef;
use sandbox_host::cleanup::Steps;
use vm_driver::Vmm;
use vm_network::Network;
use vm_share::{Share, Tree};

use crate::error::VmError;

/// What runs on the host for one VM and is stopped with it.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) tree: Tree,
    pub(crate) share: Share,
    pub(crate) network: Option<Network>,
}

impl Parts {
    /// Stops all of it; runs every step even if one fails.
    pub(crate) async fn stop(&self) -> Result<(), VmError> {
        let mut steps = Steps::<VmError>::default();
        steps.take(self.vmm.stop().await);
        steps.take(self.share.stop().await.map_err(Error::from));
        if let Some(network) = &self.network {
            steps.take(network.leave().await.map_err(Error::from));
        }
        steps.result()
    }

    /// Every process that runs for the VM.
    pub(crate) fn processes(&self) -> Vec<ProcessRef> {
        let mut all = self.vmm.processes();
        all.extend(self.share.processes());
        all
    }

    /// Resolves when a process that the VM cannot run without has exited.
    pub(crate) async fn broken(&self) -> Exit {
        tokio::select! {
            exit = self.vmm.exited() => exit,
            exit = self.share.exited() => {
                let log = self.share.log_tail();
                tracing::error!(
                    "virtiofsd exited with status {}, which stops the Pod; its log: {log}",
                    exit.status
                );
                exit
            }
        }
    }
}
