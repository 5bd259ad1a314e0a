//! A container: created, started, paused, deleted.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_api::agent::{CreateContainerRequest, Stdio};
use agent_system::{PROGRAM, blocking, log_error};
use libcontainer::oci_spec::runtime::Spec;
use parking_lot::Mutex;

use crate::bundle::{self, Mounts};
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, Kind, Result, late, missing, refused};
use crate::launch::{RuntimeCall, launch};
use crate::paths::states;
use crate::pod::Pod;
use crate::process::{Process, Role};
use crate::{exec, memory_stall, spec};

/// Execs that are not deleted, running or not.
const EXECS_MAX: usize = 512;

/// How long a killed process may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Held across libcontainer's start, which changes the agent's working directory while it connects
/// to the container's socket. The container listens on it, so the start does not wait.
static STARTING: Mutex<()> = Mutex::new(());

/// A container of this guest.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    /// Its bundle, and the directories of its execs.
    dir: PathBuf,
    spec: Spec,
    pub(crate) cgroup: Cgroup,
    pub(crate) init: Arc<Process>,
    state: Mutex<ContainerState>,
    _memory_stall: memory_stall::Watch,
}

#[derive(Debug)]
enum ContainerState {
    Live {
        execs: HashMap<String, Arc<Process>>,
        /// Only held: unmounted when the container is deleted.
        _mounts: Mounts,
    },
    Deleted,
}

impl Container {
    /// Creates a container whose init process waits for its start. A failure leaves nothing
    /// behind.
    pub(crate) async fn create(pod: &Pod, request: CreateContainerRequest) -> Result<Self> {
        let id = request.container.clone();
        let created = Self::try_create(pod, request).await;
        if created.is_err() {
            let failed = id.clone();
            let removed = blocking(move || bundle::remove(&failed)).await;
            if let Err(error) = removed {
                log_error(&format!("cleaning up container {id:?}: {error}"));
            }
        }
        created
    }

    async fn try_create(pod: &Pod, request: CreateContainerRequest) -> Result<Self> {
        let id = request.container.clone();
        let stdio = request.stdio.clone().unwrap_or_default();
        let init = Arc::new(Process::planned(format!("container {id:?}"), &stdio)?);
        let pid_namespace = match request.shared_pid {
            true => pod.pid_namespace()?,
            false => None,
        };
        let bundle = {
            let storages = pod.storages.clone();
            blocking(move || bundle::prepare(&storages, &request, pid_namespace, stdio.terminal))
                .await?
        };
        let call = RuntimeCall {
            program: PathBuf::from(PROGRAM),
            arguments: [
                "create".into(),
                id.clone(),
                states().display().to_string(),
                bundle.dir.display().to_string(),
            ]
            .into(),
            streams: init.begin()?,
            terminal: init.has_terminal,
        };
        let launched = launch(&pod.reaper, call).await?;
        let cgroup = Cgroup::of(&id);
        init.created(launched, cgroup.clone(), Role::Init)?;
        pod.add_init(&init);
        let state = ContainerState::Live { execs: HashMap::new(), _mounts: bundle.mounts };
        Ok(Self {
            id,
            dir: bundle.dir,
            spec: bundle.spec,
            _memory_stall: memory_stall::watch(cgroup.clone()),
            cgroup,
            init,
            state: Mutex::new(state),
        })
    }

    /// The init process where `exec` is empty, or the exec with this ID.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = match &*self.state.lock() {
            ContainerState::Live { execs, .. } => execs.get(exec).cloned(),
            ContainerState::Deleted => None,
        };
        found.ok_or_else(|| missing(format!("container {:?} has no exec {exec:?}", self.id)))
    }

    /// Starts the init process and returns its PID.
    pub(crate) async fn start(&self) -> Result<u32> {
        let pid = self.init.may_start()?;
        let pid = pid.ok_or_else(|| refused(format!("container {:?} is not created", self.id)))?;
        let state = states().join(&self.id);
        blocking(move || {
            let _one = STARTING.lock();
            let loaded = libcontainer::container::Container::load(state);
            loaded
                .and_then(|mut container| container.start())
                .doing(|| "starting the container".into())
        })
        .await?;
        self.init.started();
        Ok(pid)
    }

    /// Adds an exec, which is not started yet.
    pub(crate) fn add_exec(&self, exec: &str, process: &[u8], stdio: &Stdio) -> Result<()> {
        let not_running = || refused(format!("container {:?} is not running", self.id));
        if !self.init.is_running() {
            return Err(not_running());
        }
        // Held while the exec's files are written, so that no other request uses their directory.
        // There are three, of a few kilobytes each, in the guest's memory.
        let mut state = self.state.lock();
        let ContainerState::Live { execs, .. } = &mut *state else { return Err(not_running()) };
        if execs.contains_key(exec) {
            let text = format!("container {:?} already has an exec {exec:?}", self.id);
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        if execs.len() >= EXECS_MAX {
            let text = format!("container {:?} has {EXECS_MAX} execs; delete some", self.id);
            return Err(refused(text));
        }
        let (json, parsed) = spec::adapt_exec(process, stdio.terminal)?;
        let dir = self.exec_dir(exec);
        let name = format!("exec {exec:?} of container {:?}", self.id);
        let planned = Process::planned(name, stdio)?;
        let capabilities = parsed.capabilities().clone();
        let written = exec::write(&dir, &self.id, &self.spec, json, capabilities);
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&dir);
            return Err(error);
        }
        execs.insert(exec.to_owned(), Arc::new(planned));
        Ok(())
    }

    fn exec_dir(&self, exec: &str) -> PathBuf {
        self.dir.join("execs").join(exec)
    }

    /// Starts an exec and returns its PID.
    pub(crate) async fn start_exec(&self, pod: &Pod, exec: &str) -> Result<u32> {
        let process = self.process(exec)?;
        process.may_start()?;
        if self.cgroup.keyed("cgroup.events", "frozen") == Some(1) {
            // The new process would freeze before it reports that it is there.
            return Err(refused(format!("container {:?} is paused", self.id)));
        }
        let dir = self.exec_dir(exec);
        let streams = process.begin()?;
        let call = RuntimeCall {
            program: PathBuf::from(PROGRAM),
            arguments: [
                "exec".into(),
                self.id.clone(),
                dir.display().to_string(),
                dir.join("process.json").display().to_string(),
            ]
            .into(),
            streams,
            terminal: process.has_terminal,
        };
        let launched = launch(&pod.reaper, call).await.inspect_err(|_| process.delete())?;
        let pid = launched.pid;
        // Only the runtime process needed it.
        let _ = fs::remove_dir_all(&dir);
        process.created(launched, self.cgroup.clone(), Role::Exec)?;
        Ok(pid)
    }

    /// Deletes an exec that has exited or was never started; succeeds if there is none.
    pub(crate) fn delete_exec(&self, exec: &str) -> Result<()> {
        // Held while the exec's directory is removed, so that `add_exec` does not reuse it
        // meanwhile. It has a few small files, in the guest's memory.
        let mut state = self.state.lock();
        let ContainerState::Live { execs, .. } = &mut *state else { return Ok(()) };
        let Some(process) = execs.get(exec) else { return Ok(()) };
        if !process.may_be_deleted() {
            return Err(refused(format!("exec {exec:?} of container {:?} is running", self.id)));
        }
        process.delete();
        execs.remove(exec);
        let _ = fs::remove_dir_all(self.exec_dir(exec));
        Ok(())
    }

    /// Kills its processes, unmounts its file systems and removes its directories. It can be
    /// called again after a failure.
    pub(crate) async fn delete(&self) -> Result<()> {
        let cgroup = self.cgroup.clone();
        blocking(move || cgroup.remove()).await?;
        let mut processes = vec![self.init.clone()];
        if let ContainerState::Live { execs, .. } = &*self.state.lock() {
            processes.extend(execs.values().cloned());
        }
        for process in processes.iter().filter(|process| !process.may_be_deleted()) {
            // An error means that it is deleted.
            if tokio::time::timeout(EXIT_TIMEOUT, process.wait()).await.is_err() {
                return Err(late(format!(
                    "a process of container {:?} has not exited {} s after it was killed",
                    self.id,
                    EXIT_TIMEOUT.as_secs()
                )));
            }
        }
        let state = std::mem::replace(&mut *self.state.lock(), ContainerState::Deleted);
        if let ContainerState::Live { execs, .. } = &state {
            execs.values().for_each(|exec| exec.delete());
        }
        let id = self.id.clone();
        blocking(move || {
            drop(state);
            bundle::remove(&id)
        })
        .await
    }
}
