//! What every backend promises, as one suite: each backend's tests run it on themselves, and so
//! does the fake, so that what is tested above the fake holds on the real ones.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Kind, Result};
use crate::request::{CreateContainer, ExecProcess, Role};
use crate::sandbox::{Backend, Container, Process, Sandbox};
use crate::{Exit, Id};

/// The longest any step may take; generous, for emulated machines.
const SOON: Duration = Duration::from_secs(60);

/// How long something is watched that must not happen.
const STILL: Duration = Duration::from_millis(100);

/// A backend under test, and the means to play containers on it.
#[async_trait]
pub trait Subject: Sync {
    /// The backend.
    fn backend(&self) -> Arc<dyn Backend>;

    /// A container whose processes run until they are told to end.
    fn container(&self, id: &str, role: Role) -> CreateContainer;

    /// A process like its container's own.
    fn exec(&self, container: &str, id: &str) -> ExecProcess;

    /// Has a started process end by itself with `status`.
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

async fn status(what: &str, process: &dyn Process) -> u32 {
    soon(what, process.wait()).await.status
}

async fn started(sandbox: &dyn Sandbox, request: CreateContainer) -> Arc<dyn Container> {
    let container = done("create", sandbox.create(request)).await;
    done("start", container.init().start()).await;
    container
}

/// The container's id as its Pod's members name it.
fn member(of: &str) -> Role {
    Role::Member { sandbox: Id::new(of).unwrap_or_else(|error| panic!("{error}")) }
}

/// One container from its creation to its end, with an exec, any number of waiters, and ends of
/// their own.
async fn a_life(subject: &dyn Subject) {
    let backend = subject.backend();
    let sandbox = done("open", backend.open()).await;
    let container = done("create", sandbox.create(subject.container("life", Role::Standalone)));
    let container = container.await;
    let init = container.init();
    assert_ne!(init.pid(), 0, "a process of the host stands for every process");
    done("start", init.start()).await;
    let early = tokio::time::timeout(STILL, init.wait()).await;
    assert!(early.is_err(), "a running process has no end: {early:?}");
    let pids = done("pids", container.pids()).await;
    assert!(!pids.is_empty(), "a living container has processes");
    done("stats", container.stats()).await;

    let exec = done("exec", container.exec(subject.exec("life", "e1"))).await;
    done("start of the exec", exec.start()).await;
    subject.end("life", Some("e1"), 3).await;
    assert_eq!(status("the exec's end", &*exec).await, 3);
    let killed = done("exec", container.exec(subject.exec("life", "e2"))).await;
    done("start of the exec", killed.start()).await;
    done("kill of the exec", killed.signal(9, false)).await;
    assert_eq!(status("the killed exec's end", &*killed).await, 137);

    let (first, second) = tokio::join!(init.wait(), async {
        subject.end("life", None, 7).await;
        init.wait().await
    });
    assert_eq!((first.status, second.status), (7, 7), "every waiter hears the same end");
    assert_eq!(status("a late wait", &*init).await, 7);
    assert!(!container.oom_killed().await, "it was not short of memory");
    done("delete", container.delete()).await;
    done("a second delete", container.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// Members join the first container's sandbox, end by themselves, and go with it.
async fn a_pod(subject: &dyn Subject) {
    let backend = subject.backend();
    let sandbox = done("open", backend.open()).await;
    let pause = started(&*sandbox, subject.container("pod", Role::Sandbox)).await;
    let one = started(&*sandbox, subject.container("one", member("pod"))).await;
    let two = started(&*sandbox, subject.container("two", member("pod"))).await;
    subject.end("one", None, 1).await;
    assert_eq!(status("a member's end", &*one.init()).await, 1);
    let still = tokio::time::timeout(STILL, two.init().wait()).await;
    assert!(still.is_err(), "one member's end is not another's");
    done("delete of a member", one.delete()).await;
    let again = started(&*sandbox, subject.container("one", member("pod"))).await;
    done("kill of a member", again.init().signal(9, false)).await;
    assert_eq!(status("a killed member's end", &*again.init()).await, 137);
    done("delete of a member", again.delete()).await;

    done("kill of the sandbox", pause.init().signal(9, false)).await;
    assert_eq!(status("the sandbox's end", &*pause.init()).await, 137);
    assert_eq!(status("a member's end with its sandbox", &*two.init()).await, 137);
    soon("the sandbox's own end", sandbox.exited()).await;
    done("delete of a member", two.delete()).await;
    done("delete of the sandbox", pause.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// What a caller must not do is refused with its code, and changes nothing.
async fn what_is_refused(subject: &dyn Subject) {
    let backend = subject.backend();
    let sandbox = done("open", backend.open()).await;
    let lone = sandbox.create(subject.container("lone", member("nobody")));
    refused("a member without its sandbox", Kind::FailedPrecondition, lone).await;

    let container = done("create", sandbox.create(subject.container("no", Role::Standalone)));
    let container = container.await;
    let init = container.init();
    let early = container.exec(subject.exec("no", "early"));
    refused("an exec before the start", Kind::FailedPrecondition, early).await;
    done("start", init.start()).await;
    refused("a second start", Kind::FailedPrecondition, init.start()).await;
    subject.end("no", None, 0).await;
    assert_eq!(status("the end", &*init).await, 0);
    refused("a signal after the end", Kind::NotFound, init.signal(15, false)).await;
    let late = container.exec(subject.exec("no", "late"));
    refused("an exec after the end", Kind::NotFound, late).await;
    done("delete", container.delete()).await;
    done("stop", sandbox.stop()).await;
}

/// A stopped sandbox ends all that is in it, and whoever knows the bundle alone may clean up
/// after it any number of times.
async fn a_stop(subject: &dyn Subject) {
    let backend = subject.backend();
    let sandbox = done("open", backend.open()).await;
    let request = subject.container("stop", Role::Sandbox);
    let (id, bundle) = (request.id.clone(), request.bundle.path().to_owned());
    let container = started(&*sandbox, request).await;
    let waiting = container.init();
    let (stopped, exit) = tokio::join!(sandbox.stop(), soon("the end", waiting.wait()));
    stopped.unwrap_or_else(|error| panic!("stop: {error}"));
    assert_eq!(exit.status, Exit::KILLED);
    soon("the sandbox's own end", sandbox.exited()).await;
    done("a second stop", sandbox.stop()).await;
    for _ in 0..2 {
        done("purge", backend.purge(&id, &bundle)).await;
    }
}
