//! `bulkhead play`: starts the Pods of files, follows and removes them.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube_manifest::{Findings, Manifest, Metadata, Pod, ReadError, read_files};
use pod_runner::{
    CriError, Exited, NodeError, Outcome, Output, RemoveError, StartError, StartedContainer,
    Starter, WaitError, first_failure, remove, until_deadline,
};

use crate::args::PlayArgs;
use crate::console;
use crate::error_chain::chain;
use crate::exec::{self, ExecError};
use crate::signals::{Caught, Signals};

/// The exit code of a run that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Why `play` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlayError {
    #[error("nothing was started")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
    /// A part of a Pod stays.
    #[error("Pod {pod} could not be removed completely; `bulkhead down {pod}` tries again")]
    Remove {
        /// The Pod.
        pod: String,
        /// The first error; the others were printed.
        source: Box<RemoveError>,
    },
}

/// Why a run is over.
enum End {
    Done(Result<u8, PlayError>),
    Signal(Caught),
    TimedOut(u32),
}

/// One run of `play`.
struct Run<'a> {
    args: &'a PlayArgs,
    cri: &'a pod_runner::Cri,
    manifest: &'a Manifest,
    state: &'a Path,
    starter: Starter<'a>,
    /// The Pods whose names this run reserved.
    reserved: RefCell<Vec<Metadata>>,
    /// The Pods that were not started completely.
    unfinished: RefCell<Vec<Metadata>>,
}

/// Plays files; returns the exit code.
pub(crate) async fn play(endpoint: &str, state: &Path, args: &PlayArgs) -> Result<u8, PlayError> {
    let findings = Findings::ignoring(args.ignore.clone());
    let read = read_files(&args.files, &findings);
    for note in findings.take_notes() {
        eprintln!("bulkhead: note: {note}");
    }
    let manifest = read?;
    let node = pod_runner::facts(args.seccomp_root.clone())?;
    let mut signals = Signals::catch().map_err(PlayError::Signals)?;
    let cri = console::connect(endpoint).await?;
    let follow = !args.detach && args.command.is_empty();
    let mut starter = Starter::new(&cri, &manifest, &node, state);
    starter.pull = args.pull.map(Into::into);
    starter.cgroup_driver = args.cgroup_driver.map(Into::into);
    starter.output = follow.then(|| Arc::new(Output::standard()));
    let run = Run {
        args,
        cri: &cri,
        manifest: &manifest,
        state,
        starter,
        reserved: RefCell::default(),
        unfinished: RefCell::default(),
    };
    let end = tokio::select! {
        result = run.drive() => End::Done(result),
        caught = signals.next() => End::Signal(caught),
        seconds = timeout(args.timeout) => End::TimedOut(seconds),
    };
    run.finish(end, &mut signals).await
}

async fn timeout(seconds: Option<u32>) -> u32 {
    match seconds {
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
                Outcome::InitFailed(exited) => failed.push(exited),
            }
        }
        self.unfinished.borrow_mut().clear();
        if !self.args.command.is_empty() {
            return match failed.first() {
                Some(exited) => Ok(exited.exit_code()),
                None => self.exec().await,
            };
        }
        if !self.args.detach {
            failed.extend(self.follow(started).await?);
        }
        Ok(first_failure(&failed).map_or(0, Exited::exit_code))
    }

    async fn start(&self, pod: &Pod) -> Result<Outcome, PlayError> {
        let (placement, directory) = self.starter.reserve(pod).await?;
        self.reserved.borrow_mut().push(pod.meta.clone());
        self.unfinished.borrow_mut().push(pod.meta.clone());
        Ok(self.starter.start(pod, &placement, &directory).await?)
    }

    async fn follow(
        &self,
        pods: Vec<(&Pod, Vec<StartedContainer>)>,
    ) -> Result<Vec<Exited>, PlayError> {
        let mut waits = tokio::task::JoinSet::new();
        for (pod, containers) in pods {
            for started in containers {
                let cri = self.cri.clone();
                let deadline = pod.deadline_seconds;
                waits.spawn(async move { until_deadline(&cri, started, deadline).await });
            }
        }
        let mut exited = Vec::new();
        while let Some(result) = waits.join_next().await {
            match result {
                Ok(result) => exited.push(result?),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(exited)
    }

    async fn exec(&self) -> Result<u8, PlayError> {
        let first = self.manifest.pods.first();
        let name = self.args.exec.clone().or_else(|| {
            let pod = first?;
            Some(format!("{}/{}", pod.meta, pod.containers.first()?.name))
        });
        let name = name.unwrap_or_default();
        let args = self.args;
        Ok(exec::run(self.cri, &name, &args.run, &args.command, args.timeout).await?)
    }

    /// Removes the Pods if that is due; returns the exit code.
    async fn finish(&self, end: End, signals: &mut Signals) -> Result<u8, PlayError> {
        let timed_out = matches!(end, End::TimedOut(_));
        let result = match end {
            End::Done(result) => result,
            End::Signal(caught) => {
                eprintln!("bulkhead: {} caught", caught.name);
                Ok(caught.exit_code)
            }
            End::TimedOut(seconds) => {
                eprintln!("bulkhead: not done after {seconds} s (--timeout)");
                Ok(TIMED_OUT)
            }
        };
        let failed = !self.unfinished.borrow().is_empty();
        if !self.args.rm && !failed {
            self.list_remaining();
            return result;
        }
        self.starter.idle().await;
        let grace = (timed_out || failed).then_some(0);
        let removal = self.remove_all(grace, signals).await;
        // Both are reported, but the run's failure is the cause.
        match (result, removal) {
            (Ok(code), removal) => removal.map(|()| code),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(removal)) => {
                eprintln!("bulkhead: {}", chain(&removal));
                Err(error)
            }
        }
    }

    /// Removes the Pods of this run, the last first. Another signal cancels the grace period.
    async fn remove_all(&self, grace: Option<i64>, signals: &mut Signals) -> Result<(), PlayError> {
        let mut grace = grace;
        let mut removal = Ok(());
        for pod in self.reserved.take().iter().rev() {
            let target = (pod.namespace.as_str(), pod.name.as_str());
            let removed = tokio::select! {
                removed = remove(self.cri, self.state, target, grace) => removed,
                caught = signals.next() => {
                    eprintln!("bulkhead: {} caught again; killing what still runs", caught.name);
                    grace = Some(0);
                    remove(self.cri, self.state, target, grace).await
                }
            };
            if let Err(errors) = removed {
                removal = Err(first_of(pod, errors));
            }
        }
        removal
    }

    fn list_remaining(&self) {
        for pod in self.reserved.borrow().iter() {
            eprintln!("bulkhead: Pod {pod} stays; `bulkhead down {pod}` removes it");
        }
    }
}

fn first_of(pod: &Metadata, errors: Vec<RemoveError>) -> PlayError {
    let mut errors = errors.into_iter();
    let first = errors.next();
    for error in errors {
        eprintln!("bulkhead: {}", chain(&error));
    }
    match first {
        Some(first) => PlayError::Remove { pod: pod.to_string(), source: Box::new(first) },
        None => unreachable!("a failed removal has an error"),
    }
}
