//! The Pod that this shim serves: one sandbox, opened by its first container.

use std::sync::Arc;

use sandbox_core::cgroup::Cgroup;
use sandbox_core::{Backend, Container, CreateContainer, Error, Kind, Result, Role, Sandbox};
use tokio::sync::{Mutex, OnceCell, oneshot};

/// Opens the sandbox when it is needed and keeps it.
#[derive(Debug)]
pub(crate) struct Pod {
    backend: Arc<dyn Backend>,
    sandbox: OnceCell<Arc<dyn Sandbox>>,
    cgroup: Option<Cgroup>,
    /// The outcome of joining the Pod's cgroup, until it is known.
    joining: Mutex<Option<oneshot::Receiver<Result<()>>>>,
}

impl Pod {
    /// A Pod of `backend`. This process joins `cgroup` in the background; no container is made
    /// before it has, so that every process of the Pod is born there.
    pub(crate) fn new(backend: Arc<dyn Backend>, cgroup: Option<Cgroup>) -> Self {
        let joining = cgroup.clone().map(|cgroup| {
            let (done, outcome) = oneshot::channel();
            // A thread: the kernel makes whoever moves a process wait.
            std::thread::spawn(move || {
                // The receiver lives as long as the Pod; without it nobody wants the outcome.
                let _ = done.send(join(&cgroup));
            });
            outcome
        });
        Self { backend, sandbox: OnceCell::new(), cgroup, joining: Mutex::new(joining) }
    }

    async fn joined(&self) -> Result<()> {
        let mut joining = self.joining.lock().await;
        match joining.take() {
            None => Ok(()),
            Some(outcome) => outcome
                .await
                .map_err(|_| Error::new(Kind::Internal, "joining the Pod's cgroup panicked"))?,
        }
    }

    /// Makes a container in the Pod's sandbox.
    pub(crate) async fn create(&self, request: CreateContainer) -> Result<Arc<dyn Container>> {
        self.joined().await?;
        if let Role::Member { sandbox } = &request.role {
            if self.sandbox.get().is_none() {
                let message = format!("the Pod's sandbox {sandbox} does not run in this shim");
                return Err(Error::new(Kind::FailedPrecondition, message));
            }
        }
        self.sandbox.get_or_try_init(|| self.backend.open()).await?.create(request).await
    }

    /// Ends the sandbox, if it was ever opened, and removes the Pod's cgroup.
    pub(crate) async fn stop(&self) -> Result<()> {
        let stopped = match self.sandbox.get() {
            Some(sandbox) => sandbox.stop().await,
            None => Ok(()),
        };
        stopped.and(self.vacate().await)
    }

    async fn vacate(&self) -> Result<()> {
        // Not before the way in has ended, however it ended.
        let joined = self.joined().await;
        match &self.cgroup {
            Some(cgroup) if joined.is_ok() => {
                cgroup.leave()?;
                Ok(cgroup.remove().await?)
            }
            _ => Ok(()),
        }
    }
}

fn join(cgroup: &Cgroup) -> Result<()> {
    cgroup.create()?;
    Ok(cgroup.join()?)
}
