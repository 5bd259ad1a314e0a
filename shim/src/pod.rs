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
    joining: Mutex<Joining>,
}

/// This process's way into the Pod's cgroup.
#[derive(Debug)]
enum Joining {
    UnderWay(oneshot::Receiver<Result<()>>),
    /// It is there, or the Pod has no cgroup.
    Joined,
    /// It did not get there, and no container may be made.
    Failed(Kind, String),
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
            Joining::UnderWay(outcome)
        });
        Self {
            backend,
            sandbox: Mutex::default(),
            cgroup,
            joining: Mutex::new(joining.unwrap_or(Joining::Joined)),
        }
    }

    async fn joined(&self) -> Result<()> {
        let mut joining = self.joining.lock().await;
        if let Joining::UnderWay(outcome) = &mut *joining {
            *joining = match outcome.await {
                Ok(Ok(())) => Joining::Joined,
                Ok(Err(error)) => Joining::Failed(error.kind(), error.to_string()),
                Err(_) => Joining::Failed(Kind::Internal, "the thread panicked".to_owned()),
            };
        }
        match &*joining {
            Joining::Failed(kind, reason) => {
                Err(Error::new(*kind, format!("joining the Pod's cgroup: {reason}")))
            }
            Joining::UnderWay(_) | Joining::Joined => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_core::bundle::Bundle;
    use sandbox_core::fake::FakeBackend;
    use sandbox_core::{Id, StdioPaths};

    fn request(dir: &std::path::Path) -> CreateContainer {
        std::fs::write(dir.join("config.json"), "{\"ociVersion\":\"1.1.0\"}").unwrap();
        CreateContainer {
            id: Id::new("c").unwrap(),
            role: Role::Standalone,
            bundle: Bundle::load(dir).unwrap(),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
            checkpoint: None,
        }
    }

    #[tokio::test]
    async fn nothing_is_made_outside_the_pods_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        // A file where the group should be: it cannot be joined.
        std::fs::write(dir.path().join("pod"), "").unwrap();
        let backend = Arc::new(FakeBackend::default());
        let group = Cgroup::below(dir.path(), "/pod").unwrap();
        let pod = Pod::new(Arc::clone(&backend) as _, Some(group));
        for _ in 0..2 {
            let refusal = pod.create(request(dir.path())).await.unwrap_err().to_string();
            assert!(refusal.starts_with("joining the Pod's cgroup: writing "), "{refusal}");
        }
        assert!(backend.journal.read().is_empty());
        pod.stop().await.unwrap();
    }

    #[tokio::test]
    async fn members_need_the_sandbox_and_its_end_makes_room_for_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let backend = Arc::new(FakeBackend::default());
        let pod = Pod::new(Arc::clone(&backend) as _, None);
        let role = Role::Member { sandbox: Id::new("s").unwrap() };
        let member = CreateContainer { role, ..request(dir.path()) };
        assert_eq!(pod.create(member).await.unwrap_err().kind(), Kind::FailedPrecondition);
        pod.create(request(dir.path())).await.unwrap();
        pod.create(request(dir.path())).await.unwrap();
        pod.stop().await.unwrap();
        pod.create(request(dir.path())).await.unwrap();
        let expected = ["open", "create c", "create c", "stop", "open", "create c"];
        assert_eq!(backend.journal.read(), expected);
    }
}
