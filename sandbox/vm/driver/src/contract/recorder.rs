//! A host that records the processes that it starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sandbox_host::{
    Bind, Child, Command, ExitWatch, Host, HostError, MountError, Output, OwnedBind, ProcessRef,
    RealHost, RootfsMount,
};

/// A real host with the marks of all processes that it started.
#[derive(Debug)]
pub(super) struct Recorder(pub(super) RealHost, pub(super) Mutex<Vec<ProcessRef>>);

#[async_trait]
impl Host for Recorder {
    async fn run(&self, command: Command, deadline: Duration) -> Result<Output, HostError> {
        self.0.run(command, deadline).await
    }

    fn spawn(&self, command: Command) -> Result<Child, HostError> {
        let child = self.0.spawn(command)?;
        self.1.lock().extend(ProcessRef::of(child.pid));
        Ok(child)
    }

    fn watch(&self, pid: u32) -> Result<ExitWatch, HostError> {
        self.0.watch(pid)
    }

    fn mount(&self, mount: &RootfsMount, target: &Path) -> Result<(), MountError> {
        self.0.mount(mount, target)
    }

    fn bind(&self, source: &Path, target: &Path, bind: Bind) -> Result<(), MountError> {
        self.0.bind(source, target, bind)
    }

    fn unmount_all(&self, target: &Path) -> Result<(), MountError> {
        self.0.unmount_all(target)
    }

    fn bind_owned(&self, source: &Path, target: &Path, to: OwnedBind) -> Result<(), MountError> {
        self.0.bind_owned(source, target, to)
    }

    fn with_private_mounts(&self, keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError> {
        self.0.with_private_mounts(keep)
    }
}

pub(super) fn recorder() -> Arc<Recorder> {
    Arc::new(Recorder(RealHost::new().unwrap(), Mutex::default()))
}
