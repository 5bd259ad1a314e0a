//! The Pod that this shim serves: one sandbox, launched with its first container. The only place
//! that knows which container launches a sandbox and which joins it.

use std::sync::Arc;

use sandbox_core::{
    Backend, CreateContainer, Created, Error, Exit, Id, Kind, LaunchSandbox, Launched, Result,
    Sandbox,
};
use sandbox_host::cgroup::Cgroup;
use tokio::sync::{Mutex, oneshot, watch};

use crate::role::Role;

/// Launches the sandbox when it is needed and keeps it.
#[derive(Debug)]
pub(crate) struct Pod {
    backend: Arc<dyn Backend>,
    state: Arc<watch::Sender<State>>,
    cgroup: Option<Cgroup>,
    joining: Mutex<Joining>,
}

/// Where the Pod is in its life.
#[derive(Debug)]
enum State {
    /// No sandbox yet.
    Empty,
    /// Its sandbox is being launched.
    Opening,
    Running(Open),
    /// The sandbox has exited; another one may be launched.
    Ended(Open, Exit),
}

/// A launched sandbox.
#[derive(Debug, Clone)]
struct Open {
    /// The id of the container that it was launched with.
    id: Id,
    sandbox: Arc<dyn Sandbox>,
}

/// A container and the sandbox it is in.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) created: Created,
    pub(crate) sandbox: Arc<dyn Sandbox>,
}

/// Where a container goes.
enum Place {
    Launch,
    Join(Arc<dyn Sandbox>),
}

/// This process's move into the Pod's cgroup.
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
            // A thread: the kernel blocks the caller that moves a process.
            std::thread::spawn(move || {
                // The receiver lives as long as the Pod.
                let _ = done.send(join(&cgroup));
            });
            Joining::UnderWay(outcome)
        });
        Self {
            backend,
            state: Arc::new(watch::Sender::new(State::Empty)),
            cgroup,
            joining: Mutex::new(joining.unwrap_or(Joining::Joined)),
        }
    }

    /// Waits for the cgroup join. The lock is held over the wait: all callers want its outcome,
    /// and the kernel bounds it.
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

    /// Makes a container in the Pod's sandbox, and first the sandbox where its role calls for one.
    pub(crate) async fn create(&self, role: &Role, request: CreateContainer) -> Result<Placed> {
        self.joined().await?;
        match self.place(role).await? {
            Place::Join(sandbox) => {
                let created = sandbox.create(request).await?;
                Ok(Placed { created, sandbox })
            }
            Place::Launch => self.launch(role, request).await,
        }
    }

    /// Where a container of this role goes. After [`Place::Launch`] the Pod is opening, and the
    /// caller settles that.
    async fn place(&self, role: &Role) -> Result<Place> {
        let mut changes = self.state.subscribe();
        loop {
            let mut decided = None;
            self.state.send_if_modified(|state| {
                decided = decide(state, role);
                let launches = matches!(decided, Some(Ok(Place::Launch)));
                if launches {
                    *state = State::Opening;
                }
                launches
            });
            if let Some(decided) = decided {
                return decided;
            }
            // The Pod holds the sender, so it cannot be closed.
            let _ = changes.wait_for(|state| !matches!(state, State::Opening)).await;
        }
    }

    async fn launch(&self, role: &Role, request: CreateContainer) -> Result<Placed> {
        let id = request.id.clone();
        let request = LaunchSandbox::with_container(request, *role == Role::Pause);
        let launched = self.backend.launch(request).await;
        let (sandbox, created) = match launched {
            Ok(Launched { sandbox, first: Some(created) }) => (sandbox, created),
            Ok(Launched { sandbox, first: None }) => {
                let stopped = sandbox.stop().await;
                self.state.send_replace(State::Empty);
                let message = format!("the sandbox came without container {id}: {stopped:?}");
                return Err(Error::new(Kind::Internal, message));
            }
            Err(error) => {
                self.state.send_replace(State::Empty);
                return Err(error);
            }
        };
        let open = Open { id, sandbox: Arc::clone(&sandbox) };
        self.state.send_replace(State::Running(open.clone()));
        tokio::spawn(end_with(open, Arc::clone(&self.state)));
        Ok(Placed { created, sandbox })
    }

    /// Stops the sandbox, if one was ever launched. The Pod's cgroup stays: containers may still
    /// have to be deleted.
    pub(crate) async fn stop(&self) -> Result<()> {
        let mut changes = self.state.subscribe();
        let _ = changes.wait_for(|state| !matches!(state, State::Opening)).await;
        let open = match &*self.state.borrow() {
            State::Running(open) | State::Ended(open, _) => Some(open.clone()),
            State::Empty | State::Opening => None,
        };
        match open {
            Some(open) => open.sandbox.stop().await,
            None => Ok(()),
        }
    }

    /// Leaves and removes the Pod's cgroup.
    pub(crate) async fn vacate(&self) -> Result<()> {
        // Wait for the cgroup join to finish, whether or not it succeeded.
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

/// Where a container of this role goes; `None` while a launch is under way.
fn decide(state: &State, role: &Role) -> Option<Result<Place>> {
    let absent = |sandbox: &Id| {
        let message = format!("the Pod's sandbox {sandbox} does not run in this shim");
        Err(Error::new(Kind::FailedPrecondition, message))
    };
    let decided = match (state, role) {
        (State::Opening, _) => return None,
        (State::Running(open), Role::Pause) => {
            let message = format!("sandbox {} already runs in this shim", open.id);
            Err(Error::new(Kind::AlreadyExists, message))
        }
        (State::Running(open), Role::Member { sandbox }) if open.id != *sandbox => absent(sandbox),
        (State::Running(open), Role::Member { .. } | Role::Standalone) => {
            Ok(Place::Join(Arc::clone(&open.sandbox)))
        }
        (State::Ended(open, exit), Role::Member { sandbox }) if open.id == *sandbox => {
            let message =
                format!("the Pod's sandbox {sandbox} has exited with status {}", exit.status);
            Err(Error::new(Kind::FailedPrecondition, message))
        }
        (State::Empty | State::Ended(..), Role::Member { sandbox }) => absent(sandbox),
        (State::Empty | State::Ended(..), Role::Pause | Role::Standalone) => Ok(Place::Launch),
    };
    Some(decided)
}

/// Notes the exit of a launched sandbox.
async fn end_with(open: Open, state: Arc<watch::Sender<State>>) {
    let exit = open.sandbox.exited().await;
    state.send_if_modified(|state| {
        let ours = matches!(state, State::Running(now) if Arc::ptr_eq(&now.sandbox, &open.sandbox));
        if ours {
            *state = State::Ended(open, exit);
        }
        ours
    });
}

fn join(cgroup: &Cgroup) -> Result<()> {
    cgroup.create()?;
    Ok(cgroup.join()?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use sandbox_core::{Bundle, FakeBackend, StdioPaths};

    fn request(dir: &Path, id: &str) -> CreateContainer {
        std::fs::write(dir.join("config.json"), "{\"ociVersion\":\"1.1.0\"}").unwrap();
        CreateContainer {
            id: Id::new(id).unwrap(),
            bundle: Bundle::load(dir).unwrap(),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
            checkpoint: None,
        }
    }

    fn member(of: &str) -> Role {
        Role::Member { sandbox: Id::new(of).unwrap() }
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
            let made = pod.create(&Role::Standalone, request(dir.path(), "c")).await;
            let refusal = made.unwrap_err().to_string();
            assert!(refusal.starts_with("joining the Pod's cgroup: writing "), "{refusal}");
        }
        assert!(backend.journal.read().is_empty());
        pod.stop().await.unwrap();
        pod.vacate().await.unwrap();
    }

    #[tokio::test]
    async fn members_need_their_sandbox_and_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let backend = Arc::new(FakeBackend::default());
        let pod = Pod::new(Arc::clone(&backend) as _, None);
        let make = async |role: Role, id: &str| {
            pod.create(&role, request(dir.path(), id)).await.map(drop).map_err(|e| e.kind())
        };
        assert_eq!(make(member("s"), "c").await, Err(Kind::FailedPrecondition));
        make(Role::Pause, "s").await.unwrap();
        assert_eq!(make(Role::Pause, "t").await, Err(Kind::AlreadyExists));
        assert_eq!(make(member("t"), "c").await, Err(Kind::FailedPrecondition));
        make(member("s"), "c").await.unwrap();
        make(Role::Standalone, "d").await.unwrap();
        let expected = ["launch s", "create s", "create c", "create d"];
        assert_eq!(backend.journal.read(), expected);
    }

    #[tokio::test]
    async fn the_exit_of_a_sandbox_makes_room_for_another() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let backend = Arc::new(FakeBackend::default());
        let pod = Pod::new(Arc::clone(&backend) as _, None);
        pod.create(&Role::Standalone, request(dir.path(), "c")).await.unwrap();
        pod.stop().await.unwrap();
        let ended = |state: &State| matches!(state, State::Ended(..));
        pod.state.subscribe().wait_for(ended).await.unwrap();
        pod.create(&Role::Standalone, request(dir.path(), "d")).await.unwrap();
        let expected = ["launch c", "create c", "stop", "launch d", "create d"];
        assert_eq!(backend.journal.read(), expected);
    }

    #[tokio::test]
    async fn containers_of_a_group_wait_for_the_launch_under_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let backend = Arc::new(FakeBackend::default());
        backend.launches_take(Duration::from_millis(20));
        let pod = Pod::new(Arc::clone(&backend) as _, None);
        let (one, two) = tokio::join!(
            pod.create(&Role::Standalone, request(dir.path(), "c")),
            pod.create(&Role::Standalone, request(dir.path(), "d")),
        );
        assert!(Arc::ptr_eq(&one.unwrap().sandbox, &two.unwrap().sandbox));
        assert_eq!(backend.journal.read(), ["launch c", "create c", "create d"]);
    }

    #[tokio::test]
    async fn a_launch_that_fails_leaves_the_pod_empty() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Arc::new(FakeBackend::default());
        let pod = Pod::new(Arc::clone(&backend) as _, None);
        // No root file system.
        for _ in 0..2 {
            let made = pod.create(&Role::Pause, request(dir.path(), "s")).await;
            assert_eq!(made.unwrap_err().kind(), Kind::InvalidArgument);
        }
    }
}
