//! A process that was started in a sandbox: a container's first one or an exec.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runsc::{Control, RunscId, Target, UrpcError};
use sandbox_core::stdio::Streams;
use sandbox_core::{Ended, Error, Exit, ExitCell, Kind, Result, Running, TerminalSize};
use tokio::task::JoinHandle;

use crate::error::GvisorError;
use crate::pod::Pod;

/// How long to wait before a running sandbox that broke off a wait is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// Which process of its container it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The first process of the container that the sandbox was launched with: it exits with the
    /// sandbox's process.
    Root,
    /// The first process of another container.
    Init {
        /// Its container has no process namespace of its own: the kernel does not kill the rest of
        /// the container when it exits.
        shares_pids: bool,
    },
    /// An exec, by the sandbox's process id.
    Exec(i32),
}

/// As the log names it, beside its container.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root | Self::Init { .. } => f.write_str("the first process"),
            Self::Exec(pid) => write!(f, "process {pid}"),
        }
    }
}

/// A started process.
#[derive(Debug)]
pub(crate) struct StartedProcess {
    pod: Arc<Pod>,
    container: RunscId,
    part: Part,
    streams: Arc<Streams>,
    exit: ExitCell,
    following: JoinHandle<()>,
}

impl Drop for StartedProcess {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl StartedProcess {
    /// Follows a process of `container` that was just started. An exec's `entry` is removed when
    /// it exits.
    pub(crate) fn follow(
        pod: Arc<Pod>,
        container: RunscId,
        part: Part,
        streams: Arc<Streams>,
    ) -> Arc<Self> {
        if part != Part::Root {
            // The sandbox itself delivers what is typed at its first container's terminal.
            forward_typed(&streams, &pod.control, &container, part);
        }
        let exit = ExitCell::new();
        let following = tokio::spawn({
            let pod = Arc::clone(&pod);
            let container = container.clone();
            let exit = exit.clone();
            async move {
                let seen = exited(&pod, &container, part).await;
                if part == (Part::Init { shares_pids: true }) {
                    kill_rest(&pod.control, &container).await;
                }
                exit.set(seen);
            }
        });
        Arc::new(Self { pod, container, part, streams, exit, following })
    }

    fn finished(&self) -> GvisorError {
        let what = match self.part {
            Part::Root | Part::Init { .. } => format!("container {}", self.container),
            Part::Exec(pid) => format!("process {pid} of container {}", self.container),
        };
        GvisorError::Finished { what }
    }
}

#[async_trait]
impl Running for StartedProcess {
    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        if self.exit.get().is_some() || !self.pod.process.alive() {
            return Err(self.finished().into());
        }
        let target = match self.part {
            Part::Root if signal == libc::SIGKILL => {
                // The whole sandbox goes with it; the host's kernel needs no answer from inside.
                self.pod.process.kill();
                return Ok(());
            }
            Part::Exec(pid) => Target::Process(pid),
            Part::Root | Part::Init { .. } if all => Target::All,
            Part::Root | Part::Init { .. } => Target::Init,
        };
        match self.pod.control.signal(&self.container, signal, target).await {
            Ok(()) => Ok(()),
            // The sandbox exited before it answered.
            Err(_) if !self.pod.process.alive() => Err(self.finished().into()),
            Err(error) => Err(error.into()),
        }
    }

    async fn wait(&self) -> Ended {
        let exit = self.exit.wait().await;
        Ended { exit, oom_killed: self.pod.group.oom_killed() }
    }

    async fn drain(&self) {
        self.streams.finish().await;
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.streams.resize(size.width, size.height).map_err(GvisorError::from)?;
        // The host's kernel does not know the terminal's foreground processes.
        let target = foreground(self.part);
        if let Err(error) = self.pod.control.signal(&self.container, libc::SIGWINCH, target).await {
            tracing::debug!(container = %self.container, "SIGWINCH: {}", Error::from(error));
        }
        Ok(())
    }

    async fn close_stdin(&self) -> Result<()> {
        self.streams.close_stdin();
        Ok(())
    }
}

/// The foreground process group of the process's terminal.
fn foreground(part: Part) -> Target {
    match part {
        Part::Root | Part::Init { .. } => Target::Foreground(0),
        Part::Exec(pid) => Target::Foreground(pid),
    }
}

/// Delivers what is typed at a terminal whose foreground processes the host's kernel does not
/// see. Stops with the terminal.
fn forward_typed(streams: &Streams, control: &Control, container: &str, part: Part) {
    let Some(mut typed) = streams.typed_signals() else { return };
    let control = control.clone();
    let container = container.to_owned();
    tokio::spawn(async move {
        while let Some(signal) = typed.recv().await {
            if let Err(error) = control.signal(&container, signal, foreground(part)).await {
                tracing::debug!(%container, "signal {signal} typed for {part}: {}", Error::from(error));
            }
        }
    });
}

/// Waits for the exit of a process: the sandbox's own for the root container's first one, what
/// the sandbox answers for another. All are killed with the sandbox.
async fn exited(pod: &Pod, container: &str, part: Part) -> Exit {
    let control = &pod.control;
    let answer = async {
        match part {
            Part::Root => std::future::pending().await,
            Part::Init { .. } => {
                answered(container, part, || control.wait(container.to_owned())).await
            }
            Part::Exec(pid) => {
                answered(container, part, || control.wait_pid(container.to_owned(), pid)).await
            }
        }
    };
    tokio::select! {
        biased;
        exit = answer => exit,
        sandbox = pod.exit.wait() => match part {
            Part::Root => sandbox,
            Part::Init { .. } | Part::Exec(_) => Exit::now(Exit::KILLED),
        },
    }
}

/// Kills what the first process of `container` has left in a process namespace that others share.
/// It would hold the container's outputs open, whose end containerd waits for before it deletes the
/// container.
async fn kill_rest(control: &Control, container: &str) {
    if let Err(error) = control.signal(container, libc::SIGKILL, Target::All).await {
        let error = Error::from(error);
        // Nothing was left, or the sandbox is gone.
        tracing::debug!(%container, "killing what its first process left: {error}");
    }
}

/// Waits with `ask` for `part` of `container` until a running sandbox answers. One that has exited
/// never does: the caller watches it.
async fn answered<A, W, F>(container: &str, part: Part, ask: A) -> Exit
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
                let error = Error::from(error);
                if error.kind() == Kind::NotFound {
                    // The sandbox does not know it any more: it was destroyed with its container.
                    return Exit::now(Exit::KILLED);
                }
                tracing::debug!(%container, "waiting for {part} in the sandbox: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
