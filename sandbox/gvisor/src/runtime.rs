//! What the containers of one sandbox are made with.

use std::sync::Arc;

use runsc::Runsc;
use sandbox_core::Id;
use sandbox_host::Host;

use crate::config::GvisorConfig;

/// A handler's settings in one containerd namespace, with the runsc for one sandbox.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) config: Arc<GvisorConfig>,
    /// containerd's namespace.
    pub(crate) namespace: Id,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) runsc: Runsc,
}
