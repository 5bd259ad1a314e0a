//! One task: a container's first process, its execs, and the order in which their ends are told.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_core::{
    Container, Error, ExecProcess, Exit, Id, Kind, Process, ProcessInfo, Result, StdioPaths,
};
use tokio::sync::watch;

use crate::events::{Event, Events};

/// How long a container's end waits for the ends of its execs, which come first.
const EXECS_END: Duration = Duration::from_secs(5);

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made, not yet started.
    Created,
    /// Running.
    Running,
    /// Frozen with its container.
    Paused,
    /// Ended.
    Exited(Exit),
}

/// What `State` tells.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) exec_id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid: u32,
    pub(crate) stdio: StdioPaths,
    pub(crate) phase: Phase,
}

/// A process with its phase.
#[derive(Debug)]
pub(crate) struct Supervised {
    process: Arc<dyn Process>,
    stdio: StdioPaths,
    phase: watch::Sender<Phase>,
    /// Held while a start is under way, so that nobody hears of the end before the start.
    starting: tokio::sync::Mutex<()>,
    /// Set when a process is killed that never started: nothing else will end it.
    abandoned: tokio::sync::Notify,
}

/// A container with its processes.
#[derive(Debug)]
pub(crate) struct Task {
    id: Id,
    bundle: PathBuf,
    container: Arc<dyn Container>,
    init: Arc<Supervised>,
    execs: Mutex<HashMap<Id, Arc<Supervised>>>,
    events: Events,
    /// Held while the container is being deleted.
    deleting: tokio::sync::Mutex<()>,
}

fn precondition(message: String) -> Error {
    Error::new(Kind::FailedPrecondition, message)
}

impl Supervised {
    fn new(process: Arc<dyn Process>, stdio: StdioPaths) -> Arc<Self> {
        Arc::new(Self {
            process,
            stdio,
            phase: watch::channel(Phase::Created).0,
            starting: tokio::sync::Mutex::new(()),
            abandoned: tokio::sync::Notify::new(),
        })
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Starts the process and tells so before anything else can be told of it.
    async fn start(&self, what: &str, started: impl FnOnce(u32)) -> Result<()> {
        let _starting = self.starting.lock().await;
        match self.phase() {
            Phase::Created => {}
            Phase::Running | Phase::Paused => {
                return Err(precondition(format!("{what} has been started already")));
            }
            Phase::Exited(_) => return Err(precondition(format!("{what} has exited"))),
        }
        self.process.start().await?;
        started(self.pid());
        self.phase.send_replace(Phase::Running);
        Ok(())
    }

    /// Resolves with the process's end; at the same time nobody is starting it.
    async fn end(&self) -> (Exit, tokio::sync::MutexGuard<'_, ()>) {
        let exit = tokio::select! {
            exit = self.process.wait() => exit,
            () = self.abandoned.notified() => Exit::now(Exit::KILLED),
        };
        (exit, self.starting.lock().await)
    }

    /// Waits for the end that was told.
    pub(crate) async fn exited(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Exited(exit) = *phase.borrow_and_update() {
                return exit;
            }
            if phase.changed().await.is_err() {
                return Exit::now(Exit::KILLED);
            }
        }
    }

    /// Signals the process. One that has ended is not found; one that never ran ends with it.
    pub(crate) async fn kill(&self, what: &str, signal: i32, all: bool) -> Result<()> {
        match self.phase() {
            Phase::Exited(_) => {
                Err(Error::new(Kind::NotFound, format!("{what}: process already finished")))
            }
            Phase::Created => {
                if signal != 0 {
                    self.abandoned.notify_one();
                }
                Ok(())
            }
            Phase::Running | Phase::Paused => self.process.signal(signal, all).await,
        }
    }

    pub(crate) async fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.process.resize(width, height).await
    }

    pub(crate) async fn close_stdin(&self) -> Result<()> {
        self.process.close_stdin().await
    }
}

impl Task {
    /// A created container; its end is watched from now on.
    pub(crate) fn new(
        id: Id,
        bundle: PathBuf,
        container: Arc<dyn Container>,
        stdio: StdioPaths,
        events: Events,
    ) -> Arc<Self> {
        let init = Supervised::new(container.init(), stdio);
        let execs = Mutex::default();
        let deleting = tokio::sync::Mutex::new(());
        let task = Arc::new(Self { id, bundle, container, init, execs, events, deleting });
        tokio::spawn(Arc::clone(&task).watch());
        task
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<Id, Arc<Supervised>>> {
        // Every change to the map is one call that cannot panic half-way.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the container's end, the last of all its processes' ends.
    async fn watch(self: Arc<Self>) {
        let (exit, _starting) = self.init.end().await;
        let running: Vec<_> = self
            .execs()
            .values()
            .filter(|exec| matches!(exec.phase(), Phase::Running | Phase::Paused))
            .cloned()
            .collect();
        let all = futures::future::join_all(running.iter().map(|exec| exec.exited()));
        if tokio::time::timeout(EXECS_END, all).await.is_err() {
            log::warn!("{}: execs outlive the container", self.id);
        }
        if self.container.oom_killed().await {
            self.events.send(Event::Oom { id: self.id.clone() });
        }
        let pid = self.init.pid();
        self.events.send(Event::Exited { id: self.id.clone(), exec: None, pid, exit });
        self.init.phase.send_replace(Phase::Exited(exit));
    }

    /// The first process, or the exec that is named.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Supervised>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = self.execs();
        let found = execs.iter().find(|(id, _)| id.as_str() == exec_id);
        found.map(|(_, exec)| Arc::clone(exec)).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("container {} has no exec {exec_id:?}", self.id))
        })
    }

    /// The container's calls that need no state.
    pub(crate) fn container(&self) -> &dyn Container {
        self.container.as_ref()
    }

    /// The host's process that stands for the container.
    pub(crate) fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// What `State` tells.
    pub(crate) fn snapshot(&self, exec_id: &str) -> Result<Snapshot> {
        let process = self.process(exec_id)?;
        Ok(Snapshot {
            id: self.id.to_string(),
            exec_id: exec_id.to_owned(),
            bundle: self.bundle.clone(),
            pid: process.pid(),
            stdio: process.stdio.clone(),
            phase: process.phase(),
        })
    }

    /// Starts the first process or the named exec; gives its host process.
    pub(crate) async fn start(self: &Arc<Self>, exec_id: &str) -> Result<u32> {
        let process = self.process(exec_id)?;
        if exec_id.is_empty() {
            let what = format!("container {}", self.id);
            let started = |pid| self.events.send(Event::Started { id: self.id.clone(), pid });
            process.start(&what, started).await?;
            return Ok(process.pid());
        }
        self.require_running("start an exec in")?;
        let exec = Id::new(exec_id)?;
        let what = format!("exec {exec} of container {}", self.id);
        let (id, name) = (self.id.clone(), exec.clone());
        let started = |pid| self.events.send(Event::ExecStarted { id, exec: name, pid });
        process.start(&what, started).await?;
        Ok(process.pid())
    }

    fn require_running(&self, verb: &str) -> Result<()> {
        let state = match self.init.phase() {
            Phase::Running => return Ok(()),
            Phase::Created => "not started",
            Phase::Paused => "paused",
            Phase::Exited(_) => "stopped",
        };
        Err(precondition(format!("cannot {verb} container {}: it is {state}", self.id)))
    }

    /// Adds an exec; [`Task::start`] runs it.
    pub(crate) async fn exec(self: &Arc<Self>, request: ExecProcess) -> Result<()> {
        self.require_running("exec in")?;
        let exec = request.id.clone();
        let taken = || {
            let message = format!("container {} already has an exec {exec}", self.id);
            Error::new(Kind::AlreadyExists, message)
        };
        if self.execs().contains_key(&exec) {
            return Err(taken());
        }
        let stdio = request.stdio.clone();
        let supervised = Supervised::new(self.container.exec(request).await?, stdio);
        match self.execs().entry(exec.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => return Err(taken()),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Arc::clone(&supervised));
            }
        }
        self.events.send(Event::ExecAdded { id: self.id.clone(), exec: exec.clone() });
        let task = Arc::clone(self);
        tokio::spawn(async move {
            let (exit, _starting) = supervised.end().await;
            let (id, pid) = (task.id.clone(), supervised.pid());
            task.events.send(Event::Exited { id, exec: Some(exec), pid, exit });
            supervised.phase.send_replace(Phase::Exited(exit));
        });
        Ok(())
    }

    /// Freezes the container.
    pub(crate) async fn pause(&self) -> Result<()> {
        self.require_running("pause")?;
        self.container.pause().await?;
        self.init.phase.send_if_modified(|phase| replace(phase, Phase::Running, Phase::Paused));
        self.events.send(Event::Paused { id: self.id.clone() });
        Ok(())
    }

    /// Thaws the container.
    pub(crate) async fn resume(&self) -> Result<()> {
        if self.init.phase() != Phase::Paused {
            return Err(precondition(format!("container {} is not paused", self.id)));
        }
        self.container.resume().await?;
        self.init.phase.send_if_modified(|phase| replace(phase, Phase::Paused, Phase::Running));
        self.events.send(Event::Resumed { id: self.id.clone() });
        Ok(())
    }

    /// Writes the container's state to `path`.
    pub(crate) async fn checkpoint(&self, path: PathBuf, exit: bool) -> Result<()> {
        if !matches!(self.init.phase(), Phase::Running | Phase::Paused) {
            return Err(precondition(format!("container {} does not run", self.id)));
        }
        let event = Event::Checkpointed { id: self.id.clone(), path: path.display().to_string() };
        self.container.checkpoint(path, exit).await?;
        self.events.send(event);
        Ok(())
    }

    /// The container's processes, execs named. One that does not run is told by the process that
    /// stands for it: containerd takes a task without any for one that was never created.
    pub(crate) async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        match self.init.phase() {
            Phase::Created | Phase::Exited(_) => {
                Ok(vec![ProcessInfo { pid: self.pid(), exec_id: None }])
            }
            Phase::Running | Phase::Paused => self.container.pids().await,
        }
    }

    /// Releases what an ended container holds; gives its end.
    pub(crate) async fn delete(&self) -> Result<(u32, Exit)> {
        let _deleting = self.deleting.lock().await;
        let exit = self.ended(&self.init, &format!("container {}", self.id)).await?;
        self.container.delete().await?;
        let pid = self.pid();
        self.events.send(Event::Deleted { id: self.id.clone(), exec: None, pid, exit });
        Ok((pid, exit))
    }

    /// Forgets an ended exec; gives its end.
    pub(crate) async fn delete_exec(&self, exec_id: &str) -> Result<(u32, Exit)> {
        let process = self.process(exec_id)?;
        let exec = Id::new(exec_id)?;
        let what = format!("exec {exec} of container {}", self.id);
        let exit = self.ended(&process, &what).await?;
        self.execs().remove(&exec);
        Ok((process.pid(), exit))
    }

    /// The end of a process that may be deleted: one that has exited, or never ran.
    async fn ended(&self, process: &Supervised, what: &str) -> Result<Exit> {
        match process.phase() {
            Phase::Exited(exit) => Ok(exit),
            Phase::Created => {
                process.abandoned.notify_one();
                Ok(process.exited().await)
            }
            Phase::Running | Phase::Paused => {
                Err(precondition(format!("{what} is still running: kill it first")))
            }
        }
    }
}

/// Moves a phase on, unless it has moved elsewhere meanwhile.
fn replace(phase: &mut Phase, from: Phase, to: Phase) -> bool {
    let moves = *phase == from;
    if moves {
        *phase = to;
    }
    moves
}
