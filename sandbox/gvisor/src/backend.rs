//! The backend: one handler's settings in one containerd namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::host::Host;
use sandbox_core::{Backend, Id, Result, Sandbox};
use tokio::sync::OnceCell;

use crate::config::GvisorConfig;
use crate::control::Control;
use crate::probe::ProbeError;
use crate::purge::{self, Remains};
use crate::record::{Record, StateFiles};
use crate::runsc::Runsc;
use crate::sandbox::GvisorSandbox;

/// Makes gVisor sandboxes.
#[derive(Debug)]
pub struct GvisorBackend {
    config: Arc<GvisorConfig>,
    namespace: Id,
    host: Arc<dyn Host>,
    runsc: OnceCell<Arc<Runsc>>,
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

    async fn runsc(&self) -> Result<&Arc<Runsc>, ProbeError> {
        let find = || async {
            let (config, host) = (Arc::clone(&self.config), Arc::clone(&self.host));
            Runsc::find(config, self.root(), host).await.map(Arc::new)
        };
        self.runsc.get_or_try_init(find).await
    }
}

#[async_trait]
impl Backend for GvisorBackend {
    async fn open(&self) -> Result<Arc<dyn Sandbox>> {
        let runsc = Arc::clone(self.runsc().await?);
        let (config, host) = (Arc::clone(&self.config), Arc::clone(&self.host));
        Ok(Arc::new(GvisorSandbox::new(config, self.namespace.clone(), host, runsc)))
    }

    async fn purge(&self, id: &Id, bundle: &Path) -> Result<()> {
        let (id, root) = (id.as_str(), self.root());
        let record = Record::load(bundle).ok().flatten();
        // runsc itself is needed for hooks alone; without it the rest still goes.
        let runsc = match record.as_ref().filter(|record| record.hooks) {
            Some(_) => self.runsc().await.ok(),
            None => None,
        };
        let sandbox = record.map(|record| record.sandbox).filter(|sandbox| sandbox != id);
        let control = sandbox.map(|sandbox| {
            let files = StateFiles::new(&root, &sandbox, id);
            Control::new(files.socket(), self.config.timeouts.call())
        });
        let remains = Remains { id, bundle, root: &root, runsc: runsc.map(|runsc| &**runsc) };
        Ok(purge::container(&remains, control.as_ref(), &*self.host).await?)
    }
}
