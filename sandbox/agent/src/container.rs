//! A container: made, run, frozen, deleted.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::agent::{CreateContainerRequest, Stdio};
use libcontainer::oci_spec::runtime::Spec;

use crate::boot::PROGRAM;
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, Kind, Result, late, missing, refused};
use crate::ground::{prepare, states, sweep};
use crate::guest::Guest;
use crate::launch::{Job, launch};
use crate::process::Process;
use crate::rootfs::Rootfs;
use crate::storage::Held;
use crate::{exec, spec, thrash};

/// Execs that are not deleted, running or not.
const EXECS_MAX: usize = 512;

/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// libcontainer's start changes the working directory for a moment.
static STARTING: Mutex<()> = Mutex::new(());

/// A container of this guest.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    /// Its bundle, and whatever else is its own.
    dir: PathBuf,
    pub(crate) cgroup: Cgroup,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    spec: Spec,
    /// What it holds of the guest until it is deleted.
    mounts: Mutex<Option<(Rootfs, Held)>>,
    /// Ended with it.
    _pressure: thrash::Watch,
}

impl Container {
    /// Makes a container whose process waits for its start. Where it fails nothing is left.
    pub(crate) async fn create(
        guest: &Arc<Guest>,
        request: CreateContainerRequest,
    ) -> Result<Self> {
        let id = request.container.clone();
        let made = Self::make(guest, request).await;
        if made.is_err() {
            let swept = id.clone();
            let swept = blocking(move || sweep(&swept)).await;
            if let Err(error) = swept {
                crate::console::error(&format!("clearing up container {id:?}: {error}"));
            }
        }
        made
    }

    async fn make(guest: &Arc<Guest>, request: CreateContainerRequest) -> Result<Self> {
        let id = request.container.clone();
        let stdio = request.stdio.clone().unwrap_or_default();
        let process = Process::planned(format!("container {id:?}"), &stdio)?;
        let pid_namespace = match request.shared_pid {
            true => guest.pod_pid_namespace()?,
            false => None,
        };
        let ground = {
            let guest = guest.clone();
            let terminal = stdio.terminal;
            blocking(move || prepare(&guest, &request, pid_namespace, terminal)).await?
        };
        let process = Arc::new(process);
        let job = Job {
            program: PathBuf::from(PROGRAM),
            arguments: [
                "create".into(),
                id.clone(),
                states().display().to_string(),
                ground.dir.display().to_string(),
            ]
            .into(),
            streams: process.begin()?,
            terminal: stdio.terminal,
        };
        let launched = launch(&guest.reaper, job).await?;
        let cgroup = Cgroup::of(&id);
        process.made(launched, cgroup.clone(), false)?;
        guest.made(&process);
        Ok(Self {
            id,
            dir: ground.dir,
            _pressure: thrash::watch(cgroup.clone()),
            cgroup,
            init: process,
            execs: Mutex::default(),
            spec: ground.fitted.spec,
            mounts: Mutex::new(Some((ground.rootfs, ground.held))),
        })
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first process, or the exec with this id.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs().get(exec).cloned();
        found.ok_or_else(|| missing(format!("container {:?} has no exec {exec:?}", self.id)))
    }

    /// Lets its first process run.
    pub(crate) async fn start(&self) -> Result<u32> {
        let pid = self.init.may_start()?;
        let pid = pid.ok_or_else(|| refused(format!("container {:?} is not made", self.id)))?;
        let state = states().join(&self.id);
        blocking(move || {
            let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            let started = libcontainer::container::Container::load(state);
            started.and_then(|mut container| container.start()).doing(|| "starting".into())
        })
        .await?;
        self.init.started();
        Ok(pid)
    }

    /// Adds an exec.
    pub(crate) fn add_exec(&self, exec: &str, process: &[u8], stdio: &Stdio) -> Result<()> {
        if !self.init.is_running() {
            return Err(refused(format!("container {:?} is not running", self.id)));
        }
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            let text = format!("container {:?} has an exec {exec:?} already", self.id);
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        if execs.len() >= EXECS_MAX {
            let text = format!("container {:?} has {EXECS_MAX} execs; delete some", self.id);
            return Err(refused(text));
        }
        let (json, parsed) = spec::fit_exec(process, stdio.terminal)?;
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

    /// Runs an exec.
    pub(crate) async fn start_exec(&self, guest: &Guest, exec: &str) -> Result<u32> {
        let process = self.process(exec)?;
        process.may_start()?;
        if self.cgroup.keyed("cgroup.events", "frozen") == Some(1) {
            // The process would freeze before it is there.
            return Err(refused(format!("container {:?} is paused", self.id)));
        }
        let dir = self.exec_dir(exec);
        let streams = process.begin()?;
        let job = Job {
            program: PathBuf::from(PROGRAM),
            arguments: [
                "exec".into(),
                self.id.clone(),
                dir.display().to_string(),
                dir.join("process.json").display().to_string(),
            ]
            .into(),
            streams,
            terminal: process.wants_terminal(),
        };
        let launched = launch(&guest.reaper, job).await.inspect_err(|_| process.gone())?;
        let pid = launched.pid;
        // Its sockets; the process itself needs nothing of it any more.
        let _ = fs::remove_dir_all(&dir);
        process.made(launched, self.cgroup.clone(), true)?;
        Ok(pid)
    }

    /// Forgets an exec that has ended or never ran. Fine when there is none.
    pub(crate) fn delete_exec(&self, exec: &str) -> Result<()> {
        let mut execs = self.execs();
        let Some(process) = execs.get(exec) else { return Ok(()) };
        if !process.may_be_deleted() {
            return Err(refused(format!("exec {exec:?} of container {:?} runs", self.id)));
        }
        process.gone();
        execs.remove(exec);
        let _ = fs::remove_dir_all(self.exec_dir(exec));
        Ok(())
    }

    /// Its processes, each with the exec it was started by.
    pub(crate) fn pids(&self) -> Result<Vec<(u32, String)>> {
        let execs: HashMap<u32, String> = {
            let execs = self.execs();
            let known = execs.iter().filter_map(|(id, process)| Some((process.pid()?, id.clone())));
            known.collect()
        };
        let pids = self.cgroup.pids()?.into_iter();
        Ok(pids.map(|pid| (pid, execs.get(&pid).cloned().unwrap_or_default())).collect())
    }

    /// Ends what is left of it and gives back what it holds. Whatever fails can be tried again.
    pub(crate) async fn delete(&self) -> Result<()> {
        let group = self.cgroup.clone();
        blocking(move || group.remove()).await?;
        let processes: Vec<_> = self.execs().values().cloned().collect();
        for process in processes.iter().chain([&self.init]).filter(|p| !p.may_be_deleted()) {
            let ended = tokio::time::timeout(PATIENCE, process.wait()).await;
            if ended.is_err() {
                let waited = PATIENCE.as_secs();
                return Err(late(format!(
                    "a process of container {:?} is not gone {waited} s after it was killed",
                    self.id
                )));
            }
        }
        processes.iter().for_each(|process| process.gone());
        self.execs().clear();
        let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let id = self.id.clone();
        blocking(move || {
            drop(mounts);
            sweep(&id)
        })
        .await
    }
}

/// Runs what blocks where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "working".into())?
}
