//! The life of one process, from its preparation to its reported exit. This is the only place that
//! decides whether a process may be started, signalled or deleted; a backend supplies what happens
//! then as [`Prepared`] and [`Running`].
//!
//! ```text
//! Created ──start──▶ Starting ──▶ Running ◀──▶ Paused
//!    │                  │ failed     │            │
//!    └──kill, delete──▶ Abandoned ──▶ Exited ◀────┘
//! ```

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_host::{Error, Exit, Kind, Result};
use tokio::sync::{OnceCell, watch};
use tracing::Instrument;

use crate::exit::Ended;

/// A process that was made and has not been started.
#[async_trait]
pub trait Prepared: fmt::Debug + Send + Sync {
    /// Runs it. When it fails, nothing of the process is left.
    async fn start(self: Box<Self>, early: Early) -> Result<Arc<dyn Running>>;

    /// Releases what waits for a start that will not come. Returns when nothing of the process is
    /// left in the sandbox.
    async fn abandon(self: Box<Self>);

    /// Kills the process by the host's own means, without the sandbox's help, at any time of its
    /// start. `None` where the host has no such means; the kill then waits for the start.
    fn killer(&self) -> Option<Killer> {
        None
    }
}

/// Kills a process by the host's own means; may be called any number of times.
pub type Killer = Arc<dyn Fn() + Send + Sync>;

/// A process that was started.
#[async_trait]
pub trait Running: fmt::Debug + Send + Sync {
    /// Sends `signal` to it, or to every process of its container with `all`. [`Kind::NotFound`]
    /// once it has exited.
    async fn signal(&self, signal: i32, all: bool) -> Result<()>;

    /// Resolves when it has exited; any number of callers. It waits for no reader of its output: a
    /// logger may end only when it learns of the exit. A process whose sandbox is gone has exited.
    async fn wait(&self) -> Ended;

    /// Completes the streams of a process that has exited, and lets their readers see end-of-file.
    /// Called once. Resolves when the output was delivered, or given up on: a terminal's reader that
    /// stalls for 2 s gets the rest later, as long as this value is not dropped; a logger has 10 s.
    async fn drain(&self);

    /// Sets its terminal's size.
    async fn resize(&self, size: TerminalSize) -> Result<()>;

    /// Lets it read end-of-file once it has read what was written before.
    async fn close_stdin(&self) -> Result<()>;
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What was requested of a process before it ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Early {
    /// The size its terminal is to have.
    pub size: Option<TerminalSize>,
    /// Its standard input was closed.
    pub stdin_closed: bool,
}

/// Where a process is in its life, as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, or abandoned and its exit not reported yet.
    Created,
    /// Its start is under way.
    Starting,
    /// Running.
    Running,
    /// Frozen with its container.
    Paused,
    /// Its exit was reported.
    Exited(Exit),
}

/// A process: its state, and everything that may be requested of it.
pub struct Process {
    name: String,
    state: watch::Sender<State>,
    drained: OnceCell<()>,
}

/// Each state owns what exists only in it.
enum State {
    Created(Box<dyn Prepared>, Early),
    Starting(Pending),
    Running(Arc<dyn Running>),
    Paused(Arc<dyn Running>),
    /// It will never run. What was prepared is released before the exit is reported.
    Abandoned(Option<Box<dyn Prepared>>),
    /// What ran is kept until the process is deleted: its output may still wait for a reader.
    Exited {
        exit: Exit,
        ran: Option<Arc<dyn Running>>,
    },
}

/// What arrives while a start is under way: carried out when it is done.
struct Pending {
    killer: Option<Killer>,
    signals: Vec<(i32, bool)>,
    early: Early,
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            Self::Created(..) | Self::Abandoned(_) => Phase::Created,
            Self::Starting(_) => Phase::Starting,
            Self::Running(_) => Phase::Running,
            Self::Paused(_) => Phase::Paused,
            Self::Exited { exit, .. } => Phase::Exited(*exit),
        }
    }

    fn running(&self) -> Option<Arc<dyn Running>> {
        match self {
            Self::Running(process) | Self::Paused(process) => Some(Arc::clone(process)),
            Self::Created(..) | Self::Starting(_) | Self::Abandoned(_) | Self::Exited { .. } => {
                None
            }
        }
    }

    /// Moves a created process to `next`; `None` when it is in another state.
    fn leave_created(&mut self, next: impl FnOnce(Box<dyn Prepared>, Early) -> Self) -> Option<()> {
        match std::mem::replace(self, Self::Abandoned(None)) {
            Self::Created(prepared, early) => {
                *self = next(prepared, early);
                Some(())
            }
            other => {
                *self = other;
                None
            }
        }
    }

    fn abandon(&mut self) -> bool {
        self.leave_created(|prepared, _| Self::Abandoned(Some(prepared))).is_some()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({}, {:?})", self.name, self.phase())
    }
}

impl Process {
    /// A process called `name` in errors (`container c1`), and the task that follows it.
    ///
    /// `report` is called once, with the process's exit; [`Phase::Exited`] is only seen when it
    /// has returned, and the output is drained after that. A process that was never started exits
    /// when `sandbox` resolves.
    pub fn follow<S, R, F>(
        name: String,
        prepared: Box<dyn Prepared>,
        sandbox: S,
        report: R,
    ) -> Arc<Self>
    where
        S: Future<Output = Exit> + Send + 'static,
        R: FnOnce(Ended) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let state = State::Created(prepared, Early::default());
        let state = watch::Sender::new(state);
        let process = Arc::new(Self { name, state, drained: OnceCell::new() });
        let followed = Arc::clone(&process);
        tokio::spawn(async move {
            let ended = followed.ended(sandbox).await;
            report(ended).await;
            let ran = followed.state.borrow().running();
            followed.state.send_replace(State::Exited { exit: ended.exit, ran });
            followed.drained().await;
        });
        process
    }

    /// Resolves with the process's exit, before it is reported.
    async fn ended(&self, sandbox: impl Future<Output = Exit> + Send) -> Ended {
        let started = async {
            let mut state = self.state.subscribe();
            let settled = |state: &State| !matches!(state, State::Created(..) | State::Starting(_));
            // `self` holds the sender, so it cannot be closed.
            let _ = state.wait_for(settled).await;
        };
        tokio::pin!(started);
        tokio::select! {
            biased;
            () = &mut started => {}
            _ = sandbox => {
                // A start that is under way fails by itself.
                self.state.send_if_modified(State::abandon);
                started.await;
            }
        }
        let running = self.state.borrow().running();
        if let Some(running) = running {
            return running.wait().await;
        }
        if let Some(prepared) = self.take_abandoned() {
            prepared.abandon().await;
        }
        Ended::killed()
    }

    fn take_abandoned(&self) -> Option<Box<dyn Prepared>> {
        let mut taken = None;
        self.state.send_if_modified(|state| {
            if let State::Abandoned(prepared) = state {
                taken = prepared.take();
            }
            false
        });
        taken
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.state.borrow().phase()
    }

    /// Waits for the exit that was reported.
    pub async fn exited(&self) -> Exit {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| matches!(state, State::Exited { .. })).await.as_deref() {
            Ok(State::Exited { exit, .. }) => *exit,
            // `self` holds the sender, so it cannot be closed.
            _ => Exit::now(Exit::KILLED),
        }
    }

    /// Waits until the output of a process that has exited was delivered.
    async fn drained(&self) {
        let ran = match &*self.state.borrow() {
            State::Exited { ran: Some(ran), .. } => Arc::clone(ran),
            _ => return,
        };
        self.drained.get_or_init(|| ran.drain()).await;
    }

    /// Starts the process. `started` is called once it runs and before anything else can be seen
    /// of it. A start that was begun is finished even if its caller goes away.
    ///
    /// # Errors
    ///
    /// [`Kind::FailedPrecondition`] unless it is created; the backend's own error otherwise, after
    /// which the process has exited.
    pub async fn start(self: &Arc<Self>, started: impl FnOnce() + Send + 'static) -> Result<()> {
        let (prepared, early) = self.begin()?;
        let process = Arc::clone(self);
        let start = async move {
            match prepared.start(early).await {
                Ok(running) => {
                    started();
                    process.run(running).await;
                    Ok(())
                }
                Err(error) => {
                    process.state.send_replace(State::Abandoned(None));
                    Err(error)
                }
            }
        };
        match tokio::spawn(start.in_current_span()).await {
            Ok(result) => result,
            // It panicked, which aborts a release.
            Err(error) => {
                self.state.send_replace(State::Abandoned(None));
                let message = format!("starting {}: {error}", self.name);
                Err(Error::new(Kind::Internal, message))
            }
        }
    }

    /// Moves a created process on to its start.
    fn begin(&self) -> Result<(Box<dyn Prepared>, Early)> {
        let mut begun = None;
        let mut refusal = "";
        self.state.send_if_modified(|state| {
            let left = state.leave_created(|prepared, early| {
                let killer = prepared.killer();
                begun = Some((prepared, early));
                let early = Early::default();
                State::Starting(Pending { killer, signals: Vec::new(), early })
            });
            refusal = match state {
                State::Exited { .. } | State::Abandoned(_) => "has exited",
                _ => "has been started already",
            };
            left.is_some()
        });
        begun.ok_or_else(|| self.precondition(refusal))
    }

    /// Takes over a started process, and carries out what was requested during its start.
    async fn run(&self, running: Arc<dyn Running>) {
        let before = self.state.send_replace(State::Running(Arc::clone(&running)));
        let State::Starting(pending) = before else { return };
        let mut requests = Vec::new();
        if let Some(size) = pending.early.size {
            requests.push(running.resize(size).await);
        }
        if pending.early.stdin_closed {
            requests.push(running.close_stdin().await);
        }
        for (signal, all) in pending.signals {
            requests.push(running.signal(signal, all).await);
        }
        for error in requests.into_iter().filter_map(Result::err) {
            tracing::debug!("{}, as requested during its start: {error}", self.name);
        }
    }

    /// Signals the process, or all of its container. A process that was not started exits by any
    /// signal but 0; during a start the signal is kept, and SIGKILL acts at once where the host
    /// can.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] when it has exited; the backend's own error otherwise.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<()> {
        enum Act {
            Nothing,
            Gone,
            Kill(Killer),
            Signal(Arc<dyn Running>),
        }
        let mut act = Act::Nothing;
        self.state.send_if_modified(|state| {
            act = match state {
                State::Created(..) if signal == 0 => Act::Nothing,
                State::Created(..) => return state.abandon(),
                State::Starting(pending) => {
                    pending.signals.push((signal, all));
                    match &pending.killer {
                        Some(killer) if signal == libc::SIGKILL => Act::Kill(Arc::clone(killer)),
                        _ => Act::Nothing,
                    }
                }
                State::Running(running) | State::Paused(running) => {
                    Act::Signal(Arc::clone(running))
                }
                State::Abandoned(_) | State::Exited { .. } => Act::Gone,
            };
            false
        });
        match act {
            Act::Nothing => Ok(()),
            Act::Kill(killer) => {
                killer();
                Ok(())
            }
            Act::Signal(running) => running.signal(signal, all).await,
            Act::Gone => {
                let message = format!("{}: process already finished", self.name);
                Err(Error::new(Kind::NotFound, message))
            }
        }
    }

    /// Sets the terminal's size, now or when the process starts.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] when it has exited; the backend's own error otherwise.
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        match self.request(|early| early.size = Some(size))? {
            Some(running) => running.resize(size).await,
            None => Ok(()),
        }
    }

    /// Lets the process read end-of-file, now or when it starts. Fine when it has exited.
    ///
    /// # Errors
    ///
    /// The backend's own.
    pub async fn close_stdin(&self) -> Result<()> {
        match self.request(|early| early.stdin_closed = true) {
            Ok(Some(running)) => running.close_stdin().await,
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// The running process, or a note for the one that will run.
    fn request(&self, note: impl FnOnce(&mut Early)) -> Result<Option<Arc<dyn Running>>> {
        let mut result = Ok(None);
        self.state.send_if_modified(|state| {
            match state {
                State::Created(_, early) => note(early),
                State::Starting(pending) => note(&mut pending.early),
                State::Running(running) | State::Paused(running) => {
                    result = Ok(Some(Arc::clone(running)));
                }
                State::Abandoned(_) | State::Exited { .. } => {
                    let message = format!("{}: process already finished", self.name);
                    result = Err(Error::new(Kind::NotFound, message));
                }
            }
            false
        });
        result
    }

    /// Notes that its container was frozen.
    pub fn paused(&self) {
        self.exchange(|state| match state {
            State::Running(running) => Some(State::Paused(Arc::clone(running))),
            _ => None,
        });
    }

    /// Notes that its container was thawed.
    pub fn resumed(&self) {
        self.exchange(|state| match state {
            State::Paused(running) => Some(State::Running(Arc::clone(running))),
            _ => None,
        });
    }

    fn exchange(&self, next: impl FnOnce(&State) -> Option<State>) {
        self.state.send_if_modified(|state| match next(state) {
            Some(next) => {
                *state = next;
                true
            }
            None => false,
        });
    }

    /// The exit of a process that may be deleted: one that has exited, or was never started, which
    /// ends it. Waits for a start that is under way, and until the output was delivered.
    ///
    /// # Errors
    ///
    /// [`Kind::FailedPrecondition`] while it runs.
    pub async fn delete(&self) -> Result<Exit> {
        self.state.send_if_modified(State::abandon);
        let mut state = self.state.subscribe();
        let decided = |state: &State| {
            !matches!(state, State::Created(..) | State::Starting(_) | State::Abandoned(_))
        };
        let exit = match state.wait_for(decided).await.as_deref() {
            Ok(State::Exited { exit, .. }) => *exit,
            _ => return Err(self.precondition("is still running: kill it first")),
        };
        self.drained().await;
        Ok(exit)
    }

    fn precondition(&self, refusal: &str) -> Error {
        Error::new(Kind::FailedPrecondition, format!("{} {refusal}", self.name))
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
