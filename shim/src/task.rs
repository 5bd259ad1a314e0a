//! One task: a container's first process, its execs, and the order in which their exits are
//! reported.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sandbox_core::{
    Container, Ended, Error, ExecProcess, Exit, Id, Kind, Phase, Process, Result, Sandbox,
    StdioPaths,
};
use tokio::sync::OnceCell;

use crate::events::{Event, Events};
use crate::pod::Placed;

/// How long a container's exit waits for the exits of its execs, which are reported first.
const EXECS_EXIT: Duration = Duration::from_secs(5);

/// What `State` reports.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) exec_id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid: u32,
    pub(crate) stdio: StdioPaths,
    pub(crate) phase: Phase,
}

/// A process as `Pids` lists it.
#[derive(Debug)]
pub(crate) struct ProcessInfo {
    /// The host's PID.
    pub(crate) pid: u32,
    /// The exec that it was started as, if any.
    pub(crate) exec_id: Option<String>,
}

/// A container with its processes.
#[derive(Debug)]
pub(crate) struct Task {
    id: Id,
    bundle: PathBuf,
    container: Arc<dyn Container>,
    sandbox: Arc<dyn Sandbox>,
    init: Entry,
    execs: Execs,
    events: Events,
    deleted: OnceCell<(u32, Exit)>,
}

/// A process and its streams.
#[derive(Debug, Clone)]
struct Entry {
    process: Arc<Process>,
    stdio: StdioPaths,
}

/// A container's execs by id. An id is taken from the moment its preparation begins.
type Execs = Arc<Mutex<HashMap<Id, Option<Entry>>>>;

fn precondition(message: String) -> Error {
    Error::new(Kind::FailedPrecondition, message)
}

impl Task {
    /// A created container; its exit is reported from now on.
    pub(crate) fn new(
        id: Id,
        bundle: PathBuf,
        placed: Placed,
        stdio: StdioPaths,
        events: Events,
    ) -> Self {
        let Placed { created, sandbox } = placed;
        let container = created.container;
        let execs = Execs::default();
        let report = {
            let id = id.clone();
            let pid = container.pid();
            let execs = Arc::clone(&execs);
            let events = events.clone();
            move |ended| report_container(id, pid, execs, events, ended)
        };
        let name = format!("container {id}");
        let process = Process::follow(name, created.init, exited(Arc::clone(&sandbox)), report);
        let init = Entry { process, stdio };
        Self { id, bundle, container, sandbox, init, execs, events, deleted: OnceCell::new() }
    }

    fn entry(&self, exec_id: &str) -> Result<Entry> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = self.execs.lock();
        let found = execs.iter().find(|(id, _)| id.as_str() == exec_id);
        found.and_then(|(_, entry)| entry.clone()).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("container {} has no exec {exec_id:?}", self.id))
        })
    }

    /// The first process, or the exec that is named.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        Ok(self.entry(exec_id)?.process)
    }

    /// The container's calls that need no state.
    pub(crate) fn container(&self) -> &dyn Container {
        self.container.as_ref()
    }

    /// The host's process that stands for the container.
    pub(crate) fn pid(&self) -> u32 {
        self.container.pid()
    }

    /// What `State` reports.
    pub(crate) fn snapshot(&self, exec_id: &str) -> Result<Snapshot> {
        let entry = self.entry(exec_id)?;
        Ok(Snapshot {
            id: self.id.to_string(),
            exec_id: exec_id.to_owned(),
            bundle: self.bundle.clone(),
            pid: self.pid(),
            stdio: entry.stdio,
            phase: entry.process.phase(),
        })
    }

    /// Starts the first process or the named exec; returns the host's process for it.
    pub(crate) async fn start(&self, exec_id: &str) -> Result<u32> {
        let process = self.process(exec_id)?;
        let pid = self.pid();
        let id = self.id.clone();
        let events = self.events.clone();
        if exec_id.is_empty() {
            process.start(move || events.send(Event::Started { id, pid })).await?;
        } else {
            self.require_running("start an exec in")?;
            let exec = Id::new(exec_id)?;
            process.start(move || events.send(Event::ExecStarted { id, exec, pid })).await?;
        }
        Ok(pid)
    }

    fn require_running(&self, verb: &str) -> Result<()> {
        let state = match self.init.process.phase() {
            Phase::Running => return Ok(()),
            Phase::Created | Phase::Starting => "not started",
            Phase::Paused => "paused",
            Phase::Exited(_) => "stopped",
        };
        Err(precondition(format!("cannot {verb} container {}: it is {state}", self.id)))
    }

    /// Adds an exec; [`Task::start`] runs it.
    pub(crate) async fn exec(&self, request: ExecProcess) -> Result<()> {
        self.require_running("exec in")?;
        let exec = request.id.clone();
        let stdio = request.stdio.clone();
        self.reserve(&exec)?;
        let prepared = match self.container.exec(request).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.execs.lock().remove(&exec);
                return Err(error);
            }
        };
        let report = {
            let id = self.id.clone();
            let exec = exec.clone();
            let pid = self.pid();
            let events = self.events.clone();
            move |ended: Ended| async move {
                events.send(Event::Exited { id, exec: Some(exec), pid, exit: ended.exit });
            }
        };
        let name = format!("exec {exec} of container {}", self.id);
        let process = Process::follow(name, prepared, exited(Arc::clone(&self.sandbox)), report);
        self.events.send(Event::ExecAdded { id: self.id.clone(), exec: exec.clone() });
        self.execs.lock().insert(exec, Some(Entry { process, stdio }));
        Ok(())
    }

    fn reserve(&self, exec: &Id) -> Result<()> {
        use std::collections::hash_map::Entry::{Occupied, Vacant};
        match self.execs.lock().entry(exec.clone()) {
            Occupied(_) => {
                let message = format!("container {} already has an exec {exec}", self.id);
                Err(Error::new(Kind::AlreadyExists, message))
            }
            Vacant(place) => {
                place.insert(None);
                Ok(())
            }
        }
    }

    /// Freezes the container.
    pub(crate) async fn pause(&self) -> Result<()> {
        self.require_running("pause")?;
        self.container.pause().await?;
        self.init.process.paused();
        self.events.send(Event::Paused { id: self.id.clone() });
        Ok(())
    }

    /// Thaws the container.
    pub(crate) async fn resume(&self) -> Result<()> {
        if self.init.process.phase() != Phase::Paused {
            return Err(precondition(format!("container {} is not paused", self.id)));
        }
        self.container.resume().await?;
        self.init.process.resumed();
        self.events.send(Event::Resumed { id: self.id.clone() });
        Ok(())
    }

    /// Writes the container's state to `path`.
    pub(crate) async fn checkpoint(&self, path: PathBuf, exit: bool) -> Result<()> {
        if !matches!(self.init.process.phase(), Phase::Running | Phase::Paused) {
            return Err(precondition(format!("container {} does not run", self.id)));
        }
        let event = Event::Checkpointed { id: self.id.clone(), path: path.display().to_string() };
        self.container.checkpoint(path, exit).await?;
        self.events.send(event);
        Ok(())
    }

    /// What `Pids` lists: the first process, and the running execs with their ids. All are under
    /// the PID of the host's process that stands for the container: a client looks for them in the
    /// host's `/proc`, where the guest's own numbers are other processes'. In no state is the list
    /// empty: containerd takes a task without processes for one that was never created.
    pub(crate) fn pids(&self) -> Vec<ProcessInfo> {
        let pid = self.pid();
        let execs = self.execs.lock();
        let running = execs.iter().filter(|(_, exec)| {
            exec.as_ref().is_some_and(|exec| exec.process.phase() == Phase::Running)
        });
        let mut names: Vec<String> = running.map(|(id, _)| id.to_string()).collect();
        names.sort();
        let first = ProcessInfo { pid, exec_id: None };
        let exec = |id| ProcessInfo { pid, exec_id: Some(id) };
        [first].into_iter().chain(names.into_iter().map(exec)).collect()
    }

    /// Releases what an exited container holds; returns its exit. Deletes at the same time share
    /// one release.
    pub(crate) async fn delete(&self) -> Result<(u32, Exit)> {
        let release = || async {
            let exit = self.init.process.delete().await?;
            self.container.delete().await?;
            let pid = self.pid();
            self.events.send(Event::Deleted { id: self.id.clone(), exec: None, pid, exit });
            Ok((pid, exit))
        };
        self.deleted.get_or_try_init(release).await.copied()
    }

    /// Forgets an exec that has exited or was never started; returns its exit, which of the latter has
    /// the status 0, as runc's shim returns it.
    pub(crate) async fn delete_exec(&self, exec_id: &str) -> Result<(u32, Exit)> {
        let process = self.process(exec_id)?;
        let never_started = process.phase() == Phase::Created;
        let mut exit = process.delete().await?;
        if never_started {
            exit.status = 0;
        }
        self.execs.lock().retain(|id, _| id.as_str() != exec_id);
        Ok((self.pid(), exit))
    }

    /// Releases what the container holds when its sandbox was stopped.
    pub(crate) async fn discard(&self) -> Result<()> {
        self.container.delete().await
    }
}

/// The exit of the sandbox, for a process that may never be started.
async fn exited(sandbox: Arc<dyn Sandbox>) -> Exit {
    sandbox.exited().await
}

/// Reports the exit of a container's first process, after those of its execs.
async fn report_container(id: Id, pid: u32, execs: Execs, events: Events, ended: Ended) {
    let started: Vec<Arc<Process>> = execs
        .lock()
        .values()
        .flatten()
        .filter(|exec| !matches!(exec.process.phase(), Phase::Created | Phase::Exited(_)))
        .map(|exec| Arc::clone(&exec.process))
        .collect();
    let all = futures::future::join_all(started.iter().map(|exec| exec.exited()));
    if tokio::time::timeout(EXECS_EXIT, all).await.is_err() {
        tracing::warn!("container {id}: execs outlive the container");
    }
    if ended.oom_killed {
        events.send(Event::Oom { id: id.clone() });
    }
    events.send(Event::Exited { id, exec: None, pid, exit: ended.exit });
}
