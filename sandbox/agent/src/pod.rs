//! What the Pod's containers share.

use std::sync::{Arc, OnceLock};

use agent_system::Storages;

use crate::error::{Result, refused};
use crate::process::Process;
use crate::reaper::Reaper;

/// What the Pod's containers share.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) reaper: Reaper,
    pub(crate) storages: Arc<Storages>,
    /// The init process of the first container, whose PID namespace is the Pod's.
    first: OnceLock<Arc<Process>>,
}

impl Pod {
    pub(crate) fn new(reaper: Reaper) -> Self {
        Self { reaper, storages: Arc::default(), first: OnceLock::new() }
    }

    /// Registers a new container's init process; the first one's PID namespace becomes the Pod's.
    pub(crate) fn add_init(&self, init: &Arc<Process>) {
        self.first.get_or_init(|| init.clone());
    }

    /// Path of the Pod's PID namespace; `None` for the Pod's first container, which creates it.
    pub(crate) fn pid_namespace(&self) -> Result<Option<String>> {
        let Some(first) = self.first.get() else { return Ok(None) };
        match first.pid() {
            Some(pid) => Ok(Some(format!("/proc/{pid}/ns/pid"))),
            None => Err(refused(
                "the Pod's first container has exited, and the Pod's PID namespace with it",
            )),
        }
    }
}
