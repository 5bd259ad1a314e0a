//! The backend: one handler's settings in one containerd namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use runsc::{Control, Network, ProbeError, Runsc, RunscId, StateFiles};
use sandbox_core::{Backend, Id, LaunchSandbox, Launched, NetworkNamespace, Result};
use sandbox_host::Host;
use tokio::sync::OnceCell;

use crate::config::GvisorConfig;
use crate::error::GvisorError;
use crate::purge::{self, Remains};
use crate::record::Record;
use crate::runtime::Runtime;
use crate::sandbox::{self, Launch};

/// Launches gVisor sandboxes.
#[derive(Debug)]
pub struct GvisorBackend {
    config: Arc<GvisorConfig>,
    namespace: Id,
    host: Arc<dyn Host>,
    runsc: OnceCell<Runsc>,
}

impl GvisorBackend {
    /// A backend with the settings `config` (see [`GvisorConfig::faults`]) for the containers of
    /// containerd's `namespace`.
    pub fn new(config: GvisorConfig, namespace: Id, host: Arc<dyn Host>) -> Self {
        Self { config: Arc::new(config), namespace, host, runsc: OnceCell::new() }
    }

    fn root(&self) -> PathBuf {
        self.config.root.join(self.namespace.as_str())
    }

    async fn runsc(&self) -> Result<&Runsc, ProbeError> {
        let config = &self.config;
        // Beside the state, for every handler and namespace.
        let cache = config.root.with_file_name("probe");
        let host = Arc::clone(&self.host);
        let find = || Runsc::find(&config.runsc, config.runsc(), self.root(), &cache, host);
        self.runsc.get_or_try_init(find).await
    }

    /// Where the packets of a Pod in the namespace `wanted` go.
    fn network(&self, wanted: &NetworkNamespace) -> Result<Network, GvisorError> {
        match (self.config.network, wanted) {
            (Network::Sandbox, NetworkNamespace::Host) if self.config.allow_host_network => {
                Ok(Network::Host)
            }
            (Network::Sandbox, NetworkNamespace::Host) => Err(GvisorError::HostNetwork),
            (network, _) => Ok(network),
        }
    }
}

#[async_trait]
impl Backend for GvisorBackend {
    async fn launch(&self, request: LaunchSandbox) -> Result<Launched> {
        let LaunchSandbox { network, cgroups_path, first, .. } = request;
        let first = first.ok_or(GvisorError::NoFirst)?;
        let runsc = self.runsc().await?;
        let runtime = Runtime {
            config: Arc::clone(&self.config),
            namespace: self.namespace.clone(),
            host: Arc::clone(&self.host),
            runsc: runsc.with_network(self.network(&network)?),
        };
        Ok(sandbox::launch(runtime, Launch { first, network, cgroups_path }).await?)
    }

    async fn purge(&self, id: &Id, bundle: &Path) -> Result<()> {
        let root = self.root();
        let record = Record::load(bundle).ok().flatten();
        // runsc itself is needed for hooks alone; without it the rest is removed all the same.
        let runsc = match record.as_ref().filter(|record| record.hooks) {
            Some(_) => self.runsc().await.ok(),
            None => None,
        };
        let sandbox = record
            .map(|record| record.sandbox)
            .filter(|sandbox| *sandbox != sandbox.beside(id.as_str()));
        let control = sandbox.map(|sandbox| {
            let files = StateFiles::new(&root, &sandbox, &sandbox.beside(id.as_str()));
            Control::new(files.socket(), self.config.timeouts.call())
        });
        let id = RunscId::new(id.as_str());
        let remains = Remains { id: &id, bundle, root: &root, runsc };
        Ok(purge::container(&remains, control.as_ref(), &*self.host).await?)
    }
}
