//! A container's first process.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::libc;
use sandbox_core::exit::ExitCell;
use sandbox_core::stdio::{ProcessFds, Streams};
use sandbox_core::{Exit, Kind, Process, Result};
use sandbox_netns::Dial;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::Network;
use crate::control::{Control, Target};
use crate::error::GvisorError;
use crate::forward::{Inside, Outside};
use crate::netns::{self, SavedNetwork};
use crate::pod::Pod;
use crate::record::Record;
use crate::runsc::Runsc;
use crate::spec::NetworkNamespace;
use crate::urpc::UrpcError;

/// How long to wait before a living sandbox that broke off a wait is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What is left to do for a start.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Streams that go to runsc's `start`: those of a container that joined a sandbox.
    pub(crate) stdio: Option<ProcessFds>,
    /// A checkpoint to restore from.
    pub(crate) image: Option<PathBuf>,
    /// The network namespace to take addresses from: that of a container that made a sandbox.
    pub(crate) network: Option<NetworkNamespace>,
}

#[derive(Debug)]
enum State {
    Created(Prepared, oneshot::Sender<()>),
    Starting,
    Started,
}

/// The first process.
#[derive(Debug)]
pub(crate) struct Init {
    id: String,
    bundle: PathBuf,
    network: Network,
    pod: Arc<Pod>,
    runsc: Arc<Runsc>,
    streams: Arc<Streams>,
    state: Mutex<State>,
    early: ExitCell,
    exit: ExitCell,
    following: JoinHandle<()>,
}

impl Drop for Init {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Init {
    /// The first process of the created container `id`.
    pub(crate) fn new(
        id: String,
        bundle: PathBuf,
        network: Network,
        pod: Arc<Pod>,
        runsc: Arc<Runsc>,
        streams: Streams,
        prepared: Prepared,
    ) -> Self {
        let (started, start) = oneshot::channel();
        let (early, exit, streams) = (ExitCell::new(), ExitCell::new(), Arc::new(streams));
        let following = tokio::spawn({
            let (id, streams, exit) = (id.clone(), Arc::clone(&streams), exit.clone());
            let (early, ended) = (early.clone(), pod.ended.clone());
            let control = (pod.id != id).then(|| pod.control.clone());
            async move {
                let end = follow(id, control, start, early, ended).await;
                streams.finish().await;
                exit.set(end);
            }
        });
        let state = Mutex::new(State::Created(prepared, started));
        Self { id, bundle, network, pod, runsc, streams, state, early, exit, following }
    }

    fn what(&self) -> String {
        format!("container {}", self.id)
    }

    fn is_root(&self) -> bool {
        self.pod.id == self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No change of state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// Fails unless the process runs.
    pub(crate) fn check_runs(&self) -> Result<(), GvisorError> {
        if self.ended().is_some() {
            return Err(GvisorError::Ended { what: self.what() });
        }
        match *self.state() {
            State::Started => Ok(()),
            State::Created(..) | State::Starting => {
                Err(GvisorError::NotStarted { what: self.what() })
            }
        }
    }

    async fn run(&self, prepared: Prepared) -> Result<(), GvisorError> {
        let (mut mask, mut forward) = (false, None);
        if let (Some(NetworkNamespace::Path(path)), Network::Sandbox) =
            (&prepared.network, self.network)
        {
            mask = self.runsc.probe.mistakes_namespaces();
            let saved = netns::save(path.clone()).await?;
            if let Some(mut record) = Record::load(&self.bundle)? {
                record.network = Some(saved.clone());
                record.store(&self.bundle)?;
            }
            forward = Some((path, self.dial(&saved)));
            self.pod.keep_network(saved);
        } else if prepared.network.is_some() {
            mask = self.network == Network::Sandbox && self.runsc.probe.mistakes_namespaces();
        }
        let image = prepared.image.as_deref();
        self.runsc.start(&self.id, &self.bundle, image, prepared.stdio, mask).await?;
        if let Some((netns, dial)) = forward {
            self.pod.forward_ports(netns, dial).await;
        }
        Ok(())
    }

    /// How ports of the sandbox are connected to.
    fn dial(&self, saved: &SavedNetwork) -> Arc<dyn Dial> {
        if self.runsc.probe.panics_on_port_forward() {
            return Arc::new(Outside(saved.addresses()));
        }
        let (control, sandbox) = (self.pod.control.clone(), self.pod.id.clone());
        Arc::new(Inside { control, sandbox })
    }

    /// Ends a container whose process does not exist yet.
    fn kill_unstarted(&self, signal: i32) -> Result<(), GvisorError> {
        if self.is_root() {
            self.pod.process.kill();
        }
        self.early.set(Exit::now(128 + signal.unsigned_abs()));
        Ok(())
    }
}

#[async_trait]
impl Process for Init {
    fn pid(&self) -> u32 {
        self.pod.process.pid
    }

    async fn start(&self) -> Result<()> {
        self.pod.check_runs()?;
        if self.ended().is_some() {
            return Err(GvisorError::Ended { what: self.what() }.into());
        }
        let (prepared, started) = {
            let mut state = self.state();
            match std::mem::replace(&mut *state, State::Starting) {
                State::Created(prepared, started) => (prepared, started),
                other @ (State::Starting | State::Started) => {
                    *state = other;
                    return Err(GvisorError::Started { what: self.what() }.into());
                }
            }
        };
        if let Err(error) = self.run(prepared).await {
            // A sandbox whose first container did not start is of no use to anyone.
            if self.is_root() {
                self.pod.process.kill();
            } else {
                self.early.set(Exit::now(Exit::KILLED));
            }
            return Err(error.into());
        }
        *self.state() = State::Started;
        if !self.is_root() {
            // The sandbox itself sees to its first container's terminal.
            forward_typed(&self.streams, &self.pod.control, &self.id, 0);
        }
        // The follower may have seen the sandbox's end already.
        let _ = started.send(());
        Ok(())
    }

    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        if self.ended().is_some() {
            return Err(GvisorError::Ended { what: self.what() }.into());
        }
        let created = matches!(*self.state(), State::Created(..));
        if created && matches!(signal, libc::SIGKILL | libc::SIGTERM) {
            return Ok(self.kill_unstarted(signal)?);
        }
        if self.is_root() && signal == libc::SIGKILL {
            // The whole sandbox goes with it; the host's kernel needs no answer from inside.
            self.pod.process.kill();
            return Ok(());
        }
        let target = if all { Target::All } else { Target::Init };
        Ok(self.pod.control.signal(&self.id, signal, target).await?)
    }

    async fn wait(&self) -> Exit {
        self.exit.wait().await
    }

    async fn resize(&self, width: u16, height: u16) -> Result<()> {
        if self.ended().is_some() {
            return Err(GvisorError::Ended { what: self.what() }.into());
        }
        self.streams.resize(width, height).map_err(GvisorError::from)?;
        if matches!(*self.state(), State::Started) {
            tell_size(&self.pod.control, &self.id, 0).await;
        }
        Ok(())
    }

    async fn close_stdin(&self) -> Result<()> {
        self.streams.close_stdin();
        Ok(())
    }
}

/// Delivers what is typed at a terminal whose foreground processes the host's kernel does not see.
/// Ends with the terminal.
pub(crate) fn forward_typed(streams: &Streams, control: &Control, id: &str, pid: i32) {
    let Some(mut typed) = streams.typed_signals() else { return };
    let (control, id) = (control.clone(), id.to_owned());
    tokio::spawn(async move {
        while let Some(signal) = typed.recv().await {
            if let Err(e) = control.signal(&id, signal, Target::Foreground(pid)).await {
                log::debug!("signal {signal} typed in {id}: {}", sandbox_core::Error::from(e));
            }
        }
    });
}

/// Tells the terminal's foreground processes of a new size: the host's kernel does not know them.
pub(crate) async fn tell_size(control: &Control, id: &str, pid: i32) {
    if let Err(e) = control.signal(id, libc::SIGWINCH, Target::Foreground(pid)).await {
        log::debug!("SIGWINCH in container {id}: {}", sandbox_core::Error::from(e));
    }
}

/// Waits for the end of container `id`: the sandbox's own for the one that made it (no
/// `control`), what the sandbox tells for another.
async fn follow(
    id: String,
    control: Option<Control>,
    start: oneshot::Receiver<()>,
    early: ExitCell,
    ended: ExitCell,
) -> Exit {
    let Some(control) = control else {
        return ended.wait().await;
    };
    let told = async {
        match start.await {
            Ok(()) => told(|| control.wait(id.clone())).await,
            // Never started: it ends by a kill or with its sandbox.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        exit = told => exit,
        exit = early.wait() => exit,
        _ = ended.wait() => Exit::now(Exit::KILLED),
    }
}

/// Waits by `ask` until a living sandbox answers. One that has ended never does: the caller
/// watches it.
pub(crate) async fn told<A, W, F>(ask: A) -> Exit
where
    A: Fn() -> F,
    F: Future<Output = Result<W, UrpcError>>,
    W: Future<Output = Result<i32, UrpcError>>,
{
    loop {
        let answer = match ask().await {
            Ok(wait) => wait.await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(word) => return Exit::from_wait_status(word),
            Err(error) => {
                let error = sandbox_core::Error::from(error);
                if error.kind() == Kind::NotFound {
                    // The sandbox has forgotten it: it was destroyed with its container.
                    return Exit::now(Exit::KILLED);
                }
                log::debug!("waiting in the sandbox: {error}");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}
