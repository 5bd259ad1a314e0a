//! What every backend promises, as one suite: each backend's tests run it on themselves, and so
//! does the fake, so that what is tested above the fake holds on the real ones.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandbox_host::{Kind, Result};

use crate::process::{Phase, Prepared, Process};
use crate::request::{CreateContainer, ExecProcess, LaunchSandbox};
use crate::sandbox::{Backend, Container, Created, Launched, Sandbox};

/// The longest any step may take; generous, for emulated processors.
const SOON: Duration = Duration::from_secs(60);

/// How long something is watched that must not happen.
const STILL: Duration = Duration::from_millis(100);

/// A backend under test, and what it takes to play containers on it.
#[async_trait]
pub trait Subject: Sync {
    /// The backend.
    fn backend(&self) -> Arc<dyn Backend>;

    /// A container whose processes run until they are asked to exit.
    fn container(&self, id: &str) -> CreateContainer;

    /// A process like its container's own.
    fn exec(&self, container: &str, id: &str) -> ExecProcess;

    /// Has a started process exit by itself with `status`.
    async fn end(&self, container: &str, exec: Option<&str>, status: u32);
}

/// Plays the suite.
///
/// # Panics
///
/// When the backend breaks a promise; the message says which.
pub async fn holds(subject: &dyn Subject) {
    a_life(subject).await;
    a_pod(subject).await;
    what_is_refused(subject).await;
    a_stop(subject).await;
    a_kill_during_start(subject).await;
    a_delete_during_start(subject).await;
    a_second_kill(subject).await;
    a_start_after_a_kill(subject).await;
    an_exec_while_its_container_dies(subject).await;
    a_sandbox_that_dies_during_create(subject).await;
}

/// A value, with a bound on the wait for it.
async fn soon<T>(what: &str, value: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, value).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: no answer within {SOON:?}"),
    }
}

async fn done<T>(what: &str, value: impl Future<Output = Result<T>>) -> T {
    match soon(what, value).await {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

async fn refused<T>(what: &str, kind: Kind, value: impl Future<Output = Result<T>>) {
    match soon(what, value).await {
        Ok(_) => panic!("{what}: was not refused"),
        Err(error) => assert_eq!(error.kind(), kind, "{what}: {error}"),
    }
}

/// A container with its first process followed.
struct Task {
    container: Arc<dyn Container>,
    init: Arc<Process>,
}

impl Task {
    fn of(created: Created, sandbox: &Arc<dyn Sandbox>) -> Self {
        let init = follow("the container", created.init, sandbox);
        Self { container: created.container, init }
    }

    async fn start(&self) {
        done("start", self.init.start(|| {})).await;
    }

    async fn exec(&self, request: ExecProcess, sandbox: &Arc<dyn Sandbox>) -> Arc<Process> {
        follow("the exec", done("exec", self.container.exec(request)).await, sandbox)
    }
}

fn follow(name: &str, prepared: Box<dyn Prepared>, sandbox: &Arc<dyn Sandbox>) -> Arc<Process> {
    let sandbox = Arc::clone(sandbox);
    let exited = async move { sandbox.exited().await };
    Process::follow(name.to_owned(), prepared, exited, async |_| {})
}

/// A sandbox with its first container, CRI's pause container or a workload.
async fn launched(subject: &dyn Subject, id: &str, pause: bool) -> (Arc<dyn Sandbox>, Task) {
    let request = LaunchSandbox::with_container(subject.container(id), pause);
    let Launched { sandbox, first } = done("launch", subject.backend().launch(request)).await;
    let Some(first) = first else { panic!("a launch with a container returns it") };
    let task = Task::of(first, &sandbox);
    (sandbox, task)
}

/// Another container in the sandbox.
async fn joined(subject: &dyn Subject, sandbox: &Arc<dyn Sandbox>, id: &str) -> Task {
    Task::of(done("create", sandbox.create(subject.container(id))).await, sandbox)
}

async fn status(what: &str, process: &Process) -> u32 {
    soon(what, process.exited()).await.status
}

/// One container from its creation to its exit, with execs and any number of waiters.
async fn a_life(subject: &dyn Subject) {
    let (sandbox, task) = launched(subject, "life", false).await;
    let init = Arc::clone(&task.init);
    assert_ne!(task.container.pid(), 0, "a process of the host stands for every container");
    task.start().await;
    let early = tokio::time::timeout(STILL, init.exited()).await;
    assert!(early.is_err(), "a running process has not exited: {early:?}");
    done("stats", task.container.stats()).await;

    let exec = task.exec(subject.exec("life", "e1"), &sandbox).await;
    done("start of the exec", exec.start(|| {})).await;
    subject.end("life", Some("e1"), 3).await;
    assert_eq!(status("the exec's exit", &exec).await, 3);
    let killed = task.exec(subject.exec("life", "e2"), &sandbox).await;
    done("start of the exec", killed.start(|| {})).await;
    done("kill of the exec", killed.kill(9, false)).await;
    assert_eq!(status("the killed exec's exit", &killed).await, 137);

    let (first, second) = tokio::join!(init.exited(), async {
        subject.end("life", None, 7).await;
        init.exited().await
    });
    assert_eq!((first.status, second.status), (7, 7), "every waiter gets the same exit");
    assert_eq!(status("a late wait", &init).await, 7);
    done("delete", task.container.delete()).await;
    done("a second delete", task.container.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// Containers join the sandbox, exit by themselves, and go with it.
async fn a_pod(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let one = joined(subject, &sandbox, "one").await;
    one.start().await;
    let two = joined(subject, &sandbox, "two").await;
    two.start().await;
    let three = joined(subject, &sandbox, "three").await;
    subject.end("one", None, 1).await;
    assert_eq!(status("a container's exit", &one.init).await, 1);
    let still = tokio::time::timeout(STILL, two.init.exited()).await;
    assert!(still.is_err(), "one container's exit is not another's");
    done("delete of a container", one.container.delete()).await;
    let again = joined(subject, &sandbox, "one").await;
    again.start().await;
    done("kill of a container", again.init.kill(9, false)).await;
    assert_eq!(status("a killed container's exit", &again.init).await, 137);
    done("delete of a container", again.container.delete()).await;

    done("kill of the sandbox", pause.init.kill(9, false)).await;
    assert_eq!(status("the sandbox's exit", &pause.init).await, 137);
    assert_eq!(status("a container's exit with its sandbox", &two.init).await, 137);
    assert_eq!(status("one's that was not started", &three.init).await, 137);
    soon("the sandbox's own exit", sandbox.exited()).await;
    let late = sandbox.create(subject.container("late"));
    refused("a container in a dead sandbox", Kind::FailedPrecondition, late).await;
    for task in [two, three, pause] {
        done("delete", task.container.delete()).await;
    }
    done("stop", sandbox.stop()).await;
}

/// What a caller must not do is refused with its code, and changes nothing.
async fn what_is_refused(subject: &dyn Subject) {
    let (sandbox, task) = launched(subject, "no", false).await;
    task.start().await;
    refused("a second start", Kind::FailedPrecondition, task.init.start(|| {})).await;
    refused("a delete while it runs", Kind::FailedPrecondition, task.init.delete()).await;
    let late = task.exec(subject.exec("no", "late"), &sandbox).await;
    subject.end("no", None, 0).await;
    assert_eq!(status("the exit", &task.init).await, 0);
    refused("a signal after the exit", Kind::NotFound, task.init.kill(15, false)).await;
    let started = soon("an exec after the exit", late.start(|| {})).await;
    assert!(started.is_err(), "an exec after the exit was not refused");
    assert_eq!(done("delete", task.init.delete()).await.status, 0);
    done("delete", task.container.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// A stopped sandbox ends all that is in it, and its bundle alone is enough to clean up after it,
/// any number of times.
async fn a_stop(subject: &dyn Subject) {
    let request = subject.container("stop");
    let id = request.id.clone();
    let bundle = request.bundle.path().to_owned();
    let request = LaunchSandbox::with_container(request, true);
    let backend = subject.backend();
    let Launched { sandbox, first } = done("launch", backend.launch(request)).await;
    let Some(first) = first else { panic!("a launch with a container returns it") };
    let task = Task::of(first, &sandbox);
    task.start().await;
    let (stopped, status) = tokio::join!(sandbox.stop(), status("the exit", &task.init));
    stopped.unwrap_or_else(|error| panic!("stop: {error}"));
    assert_eq!(status, 137);
    soon("the sandbox's own exit", sandbox.exited()).await;
    done("a second stop", sandbox.stop()).await;
    for _ in 0..2 {
        done("purge", backend.purge(&id, &bundle)).await;
    }
}

/// Starts the process and kills it before its start has returned.
async fn killed_while_starting(what: &str, process: &Arc<Process>) {
    let kill = async {
        // The start goes first.
        tokio::task::yield_now().await;
        assert_eq!(process.phase(), Phase::Starting, "{what}");
        done(what, process.kill(9, false)).await;
    };
    // It may fail, when the kill takes what it needs.
    let (_, ()) = tokio::join!(soon(what, process.start(|| {})), kill);
    assert_eq!(status(what, process).await, 137, "{what}");
    refused(what, Kind::NotFound, process.kill(9, false)).await;
}

/// A kill that arrives while a start is under way ends the process.
async fn a_kill_during_start(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let member = joined(subject, &sandbox, "early").await;
    killed_while_starting("a container killed during its start", &member.init).await;
    done("delete of the container", member.container.delete()).await;

    let member = joined(subject, &sandbox, "home").await;
    member.start().await;
    let exec = member.exec(subject.exec("home", "e"), &sandbox).await;
    killed_while_starting("an exec killed during its start", &exec).await;
    let still = tokio::time::timeout(STILL, member.init.exited()).await;
    assert!(still.is_err(), "an exec's kill is not its container's");
    finish(&sandbox, &pause, [member]).await;

    let (sandbox, first) = launched(subject, "first", true).await;
    killed_while_starting("a sandbox killed during its first start", &first.init).await;
    done("delete of the sandbox", first.container.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// Kills the sandbox by its first container, and deletes all.
async fn finish<const N: usize>(sandbox: &Arc<dyn Sandbox>, first: &Task, others: [Task; N]) {
    // The sandbox may be gone already.
    let _ = soon("kill of the sandbox", first.init.kill(9, false)).await;
    for task in &others {
        soon("a container's exit with its sandbox", task.init.exited()).await;
        done("delete of a container", task.container.delete()).await;
    }
    soon("the sandbox's exit", first.init.exited()).await;
    done("delete of the sandbox", first.container.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// A delete that arrives while a start is under way waits for it, and is refused: the process runs.
async fn a_delete_during_start(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let member = joined(subject, &sandbox, "slow").await;
    let delete = async {
        tokio::task::yield_now().await;
        assert_eq!(member.init.phase(), Phase::Starting);
        refused("a delete during the start", Kind::FailedPrecondition, member.init.delete()).await;
    };
    let (started, ()) = tokio::join!(soon("start", member.init.start(|| {})), delete);
    started.unwrap_or_else(|error| panic!("start: {error}"));
    assert_eq!(member.init.phase(), Phase::Running);
    finish(&sandbox, &pause, [member]).await;
}

/// A second kill is as good as the first, or comes too late.
async fn a_second_kill(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let member = joined(subject, &sandbox, "twice").await;
    member.start().await;
    done("the first kill", member.init.kill(9, false)).await;
    if let Err(error) = soon("the second kill", member.init.kill(9, true)).await {
        assert_eq!(error.kind(), Kind::NotFound, "the second kill: {error}");
    }
    assert_eq!(status("the exit", &member.init).await, 137);
    finish(&sandbox, &pause, [member]).await;
}

/// What was killed before it was started does not start.
async fn a_start_after_a_kill(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let member = joined(subject, &sandbox, "never").await;
    done("kill", member.init.kill(9, false)).await;
    assert_eq!(status("the exit", &member.init).await, 137);
    refused("a start after the kill", Kind::FailedPrecondition, member.init.start(|| {})).await;
    assert_eq!(done("delete", member.init.delete()).await.status, 137);
    finish(&sandbox, &pause, [member]).await;
}

/// An exec whose container dies while it starts is refused or exits; either way it is over.
async fn an_exec_while_its_container_dies(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let member = joined(subject, &sandbox, "dying").await;
    member.start().await;
    let exec = member.exec(subject.exec("dying", "e"), &sandbox).await;
    let kill = async {
        tokio::task::yield_now().await;
        done("kill", member.init.kill(9, true)).await;
    };
    let (_, ()) = tokio::join!(soon("start of the exec", exec.start(|| {})), kill);
    assert_eq!(status("the container's exit", &member.init).await, 137);
    soon("the exec's exit", exec.exited()).await;
    finish(&sandbox, &pause, [member]).await;
}

/// A sandbox that dies while a container is made in it: the create fails, or what it made exits.
async fn a_sandbox_that_dies_during_create(subject: &dyn Subject) {
    let (sandbox, pause) = launched(subject, "pod", true).await;
    pause.start().await;
    let kill = async {
        tokio::task::yield_now().await;
        done("kill of the sandbox", pause.init.kill(9, false)).await;
    };
    let create = soon("create", sandbox.create(subject.container("late")));
    let (created, ()) = tokio::join!(create, kill);
    if let Ok(created) = created {
        let late = Task::of(created, &sandbox);
        assert_eq!(status("the container's exit with its sandbox", &late.init).await, 137);
        done("delete of the container", late.container.delete()).await;
    }
    finish(&sandbox, &pause, []).await;
}
