//! The Pod that this shim serves: one sandbox, opened by its first container.

use std::sync::Arc;

use futures::FutureExt;
use sandbox_core::cgroup::Cgroup;
use sandbox_core::{Backend, Container, CreateContainer, Error, Kind, Result, Role, Sandbox};
use tokio::sync::{Mutex, oneshot};

/// Opens the sandbox when it is needed and keeps it.
#[derive(Debug)]
pub(crate) struct Pod {
    backend: Arc<dyn Backend>,
    sandbox: Mutex<Option<Arc<dyn Sandbox>>>,
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
        Self { backend, sandbox: Mutex::default(), cgroup, joining: Mutex::new(joining) }
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
        self.sandbox(&request.role).await?.create(request).await
    }

    /// The sandbox that a container of this role goes to: the open one, or a new one when there is
    /// none or its process has ended.
    async fn sandbox(&self, role: &Role) -> Result<Arc<dyn Sandbox>> {
        let mut open = self.sandbox.lock().await;
        let living = open.as_ref().filter(|sandbox| sandbox.exited().now_or_never().is_none());
        match (living, role) {
            (Some(sandbox), _) => Ok(Arc::clone(sandbox)),
            (None, Role::Member { sandbox }) => {
                let message = format!("the Pod's sandbox {sandbox} does not run in this shim");
                Err(Error::new(Kind::FailedPrecondition, message))
            }
            (None, Role::Sandbox | Role::Standalone) => {
                Ok(Arc::clone(open.insert(self.backend.open().await?)))
            }
        }
    }

    /// Ends the sandbox, if it was ever opened, and removes the Pod's cgroup.
    pub(crate) async fn stop(&self) -> Result<()> {
        let open = self.sandbox.lock().await.take();
        let stopped = match open {
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
