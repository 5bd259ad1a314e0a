//! `bulkhead play`: from files to running Pods, and back to nothing.

pub(crate) mod follow;
mod images;
pub(crate) mod start;

use std::cell::RefCell;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::args::PlayArgs;
use crate::cri::{Cri, CriError};
use crate::down::{self, DownError};
use crate::find::FindError;
use crate::host::HostError;
use crate::interrupt::{Caught, Signals, Uncut};
use crate::logs::{LogError, Output};
use crate::manifest::{Manifest, Metadata, Pod};
use crate::pod::ConvertError;
use crate::state::StateError;
use crate::stream::StreamError;
use crate::volumes::{SubPathError, VolumeError};
use crate::yaml::{self, Findings, ReadError};
use crate::{exec, node};
use images::ImageError;
use start::{Outcome, Started, Starter};

/// The exit code of a run that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Why the files were not played to their end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlayError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Find(#[from] FindError),
    /// The sandbox did not start with the handler that was asked for.
    #[error("runtime handler {handler:?}")]
    Handler {
        /// The handler.
        handler: String,
        /// The runtime's answer.
        source: CriError,
    },
    /// A container cannot be described to the runtime.
    #[error("{document}")]
    Convert {
        /// The Pod's document.
        document: String,
        /// What is wrong.
        source: ConvertError,
    },
    /// A part of a volume cannot be mounted.
    #[error("{place}")]
    SubPath {
        /// The mount.
        place: String,
        /// What is wrong.
        source: SubPathError,
    },
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot print the command's output")]
    Print(#[source] std::io::Error),
    /// Something of a Pod is left.
    #[error("Pod {pod} could not be removed whole; `bulkhead down {pod}` tries again")]
    Down {
        /// The Pod.
        pod: String,
        /// The first thing that went wrong; the others were printed.
        source: Box<DownError>,
    },
}

/// How a run ended.
enum End {
    Done(Result<u8, PlayError>),
    Signal(Caught),
    Late(u32),
}

/// One run of `play`.
struct Run<'a> {
    args: &'a PlayArgs,
    manifest: &'a Manifest,
    starter: Starter<'a>,
    /// The Pods whose names are ours since this run.
    reserved: RefCell<Vec<Metadata>>,
    /// The Pods that did not come up whole.
    unfinished: RefCell<Vec<Metadata>>,
}

/// Plays files; the exit code comes back.
pub(crate) async fn play(endpoint: &str, state: &Path, args: &PlayArgs) -> Result<u8, PlayError> {
    let findings = Findings::leaving_out(args.ignore.clone());
    let read = yaml::read_files(&args.files, &findings);
    for note in findings.take_notes() {
        eprintln!("bulkhead: note: {note}");
    }
    let manifest = read?;
    let node = node::facts(args.seccomp_root.clone())?;
    let mut signals = Signals::catch().map_err(PlayError::Signals)?;
    let cri = Cri::connect(endpoint).await?;
    let follow = !args.detach && args.command.is_empty();
    let starter = Starter {
        cri: &cri,
        manifest: &manifest,
        node: &node,
        state,
        pull: args.pull,
        cgroup_driver: args.cgroup_driver,
        output: follow.then(|| Arc::new(Output::standard())),
        uncut: Uncut::default(),
    };
    let run = Run {
        args,
        manifest: &manifest,
        starter,
        reserved: RefCell::default(),
        unfinished: RefCell::default(),
    };
    let end = tokio::select! {
        result = run.drive() => End::Done(result),
        caught = signals.next() => End::Signal(caught),
        seconds = late(args.timeout) => End::Late(seconds),
    };
    run.end(end, &mut signals).await
}

async fn late(timeout: Option<u32>) -> u32 {
    match timeout {
        Some(seconds) => {
            tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            seconds
        }
        None => std::future::pending().await,
    }
}

impl Run<'_> {
    async fn drive(&self) -> Result<u8, PlayError> {
        let mut started = Vec::new();
        let mut failed = Vec::new();
        for pod in &self.manifest.pods {
            match self.start(pod).await? {
                Outcome::Running(containers) => started.push((pod, containers)),
                Outcome::InitFailed(ended) => failed.push(ended),
            }
        }
        self.unfinished.borrow_mut().clear();
        if !self.args.command.is_empty() {
            return match failed.first() {
                Some(ended) => Ok(ended.exit_code()),
                None => self.exec().await,
            };
        }
        if !self.args.detach {
            failed.extend(self.follow(started).await?);
        }
        Ok(follow::first_failure(&failed).map_or(0, follow::Ended::exit_code))
    }

    async fn start(&self, pod: &Pod) -> Result<Outcome, PlayError> {
        let (placement, directory) = self.starter.reserve(pod).await?;
        self.reserved.borrow_mut().push(pod.meta.clone());
        self.unfinished.borrow_mut().push(pod.meta.clone());
        self.starter.start(pod, &placement, &directory).await
    }

    async fn follow(
        &self,
        pods: Vec<(&Pod, Vec<Started>)>,
    ) -> Result<Vec<follow::Ended>, PlayError> {
        let mut waits = tokio::task::JoinSet::new();
        for (pod, containers) in pods {
            for started in containers {
                let cri = self.starter.cri.clone();
                let deadline = pod.deadline_seconds;
                waits.spawn(async move { until_deadline(&cri, started, deadline).await });
            }
        }
        let mut ended = Vec::new();
        while let Some(result) = waits.join_next().await {
            match result {
                Ok(result) => ended.push(result?),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(ended)
    }

    async fn exec(&self) -> Result<u8, PlayError> {
        let first = self.manifest.pods.first();
        let name = self.args.exec.clone().or_else(|| {
            let pod = first?;
            Some(format!("{}/{}", pod.meta, pod.containers.first()?.name))
        });
        let name = name.unwrap_or_default();
        exec::run(self.starter.cri, &name, &self.args.run, &self.args.command, self.args.timeout)
            .await
    }

    /// Removes what must go, and says how it ended.
    async fn end(&self, end: End, signals: &mut Signals) -> Result<u8, PlayError> {
        let (result, hurry) = match end {
            End::Done(result) => (result, false),
            End::Signal(caught) => {
                eprintln!("bulkhead: {} caught", caught.name);
                (Ok(caught.exit_code), false)
            }
            End::Late(seconds) => {
                eprintln!("bulkhead: not done after {seconds} s (--timeout)");
                (Ok(TIMED_OUT), true)
            }
        };
        let failed = !self.unfinished.borrow().is_empty();
        if !self.args.rm && !failed {
            self.name_what_stays();
            return result;
        }
        self.starter.uncut.settled().await;
        let grace = (hurry || failed).then_some(0);
        let removal = self.remove_all(grace, signals).await;
        // Why the run failed says more than why its remains stay; both are told.
        match (result, removal) {
            (Ok(code), removal) => removal.map(|()| code),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(removal)) => {
                eprintln!("bulkhead: {}", crate::chain(&removal));
                Err(error)
            }
        }
    }

    /// Removes the Pods of this run, the last first. A signal meanwhile ends the grace.
    async fn remove_all(&self, grace: Option<i64>, signals: &mut Signals) -> Result<(), PlayError> {
        let (cri, state) = (self.starter.cri, self.starter.state);
        let mut grace = grace;
        let mut removal = Ok(());
        for pod in self.reserved.take().iter().rev() {
            let target = (pod.namespace.as_str(), pod.name.as_str());
            let removed = tokio::select! {
                removed = down::remove(cri, state, target, grace) => removed,
                caught = signals.next() => {
                    eprintln!("bulkhead: {} caught again; killing what still runs", caught.name);
                    grace = Some(0);
                    down::remove(cri, state, target, grace).await
                }
            };
            if let Err(errors) = removed {
                removal = Err(first_of(pod, errors));
            }
        }
        removal
    }

    fn name_what_stays(&self) {
        for pod in self.reserved.borrow().iter() {
            eprintln!("bulkhead: Pod {pod} stays; `bulkhead down {pod}` removes it");
        }
    }
}

fn first_of(pod: &Metadata, errors: Vec<DownError>) -> PlayError {
    let mut errors = errors.into_iter();
    let first = errors.next();
    for error in errors {
        eprintln!("bulkhead: {}", crate::chain(&error));
    }
    match first {
        Some(first) => PlayError::Down { pod: pod.to_string(), source: Box::new(first) },
        None => unreachable!("a failed removal has an error"),
    }
}

/// Waits for a container; kills it when the Pod's activeDeadlineSeconds are over.
async fn until_deadline(
    cri: &Cri,
    started: Started,
    deadline: Option<i64>,
) -> Result<follow::Ended, PlayError> {
    let Some(seconds) = deadline else { return follow::until_ended(cri, started).await };
    let (id, pod, name) = (started.id.clone(), started.pod.clone(), started.name.clone());
    let ended = follow::until_ended(cri, started);
    tokio::pin!(ended);
    let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    tokio::select! {
        result = &mut ended => return result,
        () = tokio::time::sleep(patience) => {}
    }
    eprintln!(
        "bulkhead: Pod {pod}: container {name} runs longer than activeDeadlineSeconds ({seconds}); killing it"
    );
    cri.stop_container(&id, 0).await?;
    ended.await
}

/// Prints what a command wrote.
pub(crate) fn print(stdout: &[u8], stderr: &[u8]) -> Result<(), PlayError> {
    let mut out = std::io::stdout().lock();
    out.write_all(stdout).and_then(|()| out.flush()).map_err(PlayError::Print)?;
    std::io::stderr().lock().write_all(stderr).map_err(PlayError::Print)
}
