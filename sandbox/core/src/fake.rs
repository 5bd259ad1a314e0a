//! A backend without a sandbox, for tests of what stands above one: its processes exit when the
//! test says so, and it remembers what was requested of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sandbox_host::{Error, ExitWatch, Kind, Result, Stats};
use tokio::sync::watch;

use crate::process::{Early, Prepared, Running, TerminalSize};
use crate::request::{CreateContainer, ExecProcess, LaunchSandbox, Resources};
use crate::sandbox::{Backend, Container, Created, Launched, Sandbox};
use crate::{Ended, Exit, Id};

/// What was requested of a fake, in order: `create c1`, `start c1`, `signal c1 9`, ...
#[derive(Debug, Default, Clone)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, entry: String) {
        self.0.lock().push(entry);
    }

    /// Everything so far.
    pub fn read(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// Launches fake sandboxes.
#[derive(Debug, Default)]
pub struct FakeBackend {
    /// What was requested of it and of all that it made.
    pub journal: Journal,
    made: Arc<Mutex<Vec<Arc<FakeContainer>>>>,
    delay: Arc<Mutex<Duration>>,
    launch_delay: Mutex<Duration>,
}

/// A sandbox that holds fake containers.
#[derive(Debug)]
struct FakeSandbox {
    journal: Journal,
    made: Arc<Mutex<Vec<Arc<FakeContainer>>>>,
    own: Mutex<Vec<Arc<FakeContainer>>>,
    delay: Arc<Mutex<Duration>>,
    exit: (watch::Sender<Option<Exit>>, ExitWatch),
}

/// A container whose processes exit on demand.
#[derive(Debug)]
pub struct FakeContainer {
    name: String,
    journal: Journal,
    init: Arc<FakeProcess>,
    execs: Mutex<Vec<Arc<FakeProcess>>>,
    delay: Arc<Mutex<Duration>>,
}

/// A process that exits on demand.
#[derive(Debug)]
struct FakeProcess {
    name: String,
    journal: Journal,
    oom_killed: AtomicBool,
    exit: (watch::Sender<Option<Exit>>, ExitWatch),
}

/// A process that was not started.
#[derive(Debug)]
struct FakePrepared {
    process: Arc<FakeProcess>,
    /// Its container's first process.
    init: Arc<FakeProcess>,
    delay: Duration,
}

impl FakeBackend {
    /// The container with this id, the youngest if there were several.
    pub fn container(&self, id: &str) -> Option<Arc<FakeContainer>> {
        self.made.lock().iter().rev().find(|container| container.name == id).cloned()
    }

    /// How long every start and every delete takes from now on.
    pub fn steps_take(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// How long every launch takes from now on.
    pub fn launches_take(&self, delay: Duration) {
        *self.launch_delay.lock() = delay;
    }
}

impl FakeContainer {
    /// Has the first process exit.
    pub fn end(&self, status: u32) {
        self.init.end(status);
    }

    /// Has an exec exit.
    pub fn end_exec(&self, id: &str, status: u32) {
        for exec in self.execs.lock().iter().filter(|exec| exec.name.ends_with(id)) {
            exec.end(status);
        }
    }

    /// Has the first process exit as by the out-of-memory killer.
    pub fn run_out_of_memory(&self) {
        self.init.oom_killed.store(true, Ordering::SeqCst);
        self.end(Exit::KILLED);
    }

    fn prepare(&self, process: &Arc<FakeProcess>) -> Box<dyn Prepared> {
        let process = Arc::clone(process);
        let init = Arc::clone(&self.init);
        Box::new(FakePrepared { process, init, delay: *self.delay.lock() })
    }
}

impl FakeProcess {
    fn new(name: String, journal: &Journal) -> Arc<Self> {
        let oom_killed = AtomicBool::new(false);
        Arc::new(Self { name, journal: journal.clone(), oom_killed, exit: ExitWatch::pair() })
    }

    /// Has it exit; the first exit counts.
    fn end(&self, status: u32) {
        self.exit.0.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert_with(|| Exit::now(status));
            first
        });
    }
}

impl FakeSandbox {
    fn make(&self, request: &CreateContainer) -> Result<Created> {
        let name = request.id.to_string();
        self.journal.note(format!("create {name}"));
        if !request.bundle.rootfs().exists() {
            let message = format!("{} is not there", request.bundle.rootfs().display());
            return Err(Error::new(Kind::InvalidArgument, message));
        }
        let container = Arc::new(FakeContainer {
            init: FakeProcess::new(name.clone(), &self.journal),
            name,
            journal: self.journal.clone(),
            execs: Mutex::default(),
            delay: Arc::clone(&self.delay),
        });
        self.made.lock().push(Arc::clone(&container));
        self.own.lock().push(Arc::clone(&container));
        let init = container.prepare(&container.init);
        Ok(Created { container, init })
    }

    fn end(&self) {
        for container in self.own.lock().iter() {
            for exec in container.execs.lock().iter() {
                exec.end(Exit::KILLED);
            }
            container.end(Exit::KILLED);
        }
        self.exit.0.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert_with(|| Exit::now(Exit::KILLED));
            first
        });
    }
}

#[async_trait]
impl Backend for FakeBackend {
    async fn launch(&self, request: LaunchSandbox) -> Result<Launched> {
        self.journal.note(format!("launch {}", request.id));
        let delay = *self.launch_delay.lock();
        tokio::time::sleep(delay).await;
        let sandbox = Arc::new(FakeSandbox {
            journal: self.journal.clone(),
            made: Arc::clone(&self.made),
            own: Mutex::default(),
            delay: Arc::clone(&self.delay),
            exit: ExitWatch::pair(),
        });
        let Some(first) = request.first else { return Ok(Launched { sandbox, first: None }) };
        let created = sandbox.make(&first.container)?;
        if first.pause {
            // The sandbox goes with its pause container.
            let init = Arc::clone(&sandbox.own.lock()[0].init);
            let dying = Arc::clone(&sandbox);
            tokio::spawn(async move {
                init.exit.1.wait().await;
                dying.end();
            });
        }
        Ok(Launched { sandbox, first: Some(created) })
    }

    async fn purge(&self, id: &Id, _bundle: &Path) -> Result<()> {
        self.journal.note(format!("purge {id}"));
        Ok(())
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn create(&self, request: CreateContainer) -> Result<Created> {
        if self.exit.1.seen().is_some() {
            let message = format!("the sandbox of {} has exited", request.id);
            return Err(Error::new(Kind::FailedPrecondition, message));
        }
        self.make(&request)
    }

    async fn stop(&self) -> Result<()> {
        self.journal.note("stop".to_owned());
        self.end();
        Ok(())
    }

    async fn exited(&self) -> Exit {
        self.exit.1.wait().await
    }
}

#[async_trait]
impl Container for FakeContainer {
    fn pid(&self) -> u32 {
        4242
    }

    async fn exec(&self, request: ExecProcess) -> Result<Box<dyn Prepared>> {
        let exec = FakeProcess::new(format!("{}/{}", self.name, request.id), &self.journal);
        self.execs.lock().push(Arc::clone(&exec));
        Ok(self.prepare(&exec))
    }

    async fn update(&self, resources: &Resources) -> Result<()> {
        let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
        self.journal.note(format!("update {} memory {memory:?}", self.name));
        Ok(())
    }

    async fn stats(&self) -> Result<Stats> {
        Ok(Stats { memory_usage: Some(1 << 20), ..Stats::default() })
    }

    async fn pause(&self) -> Result<()> {
        self.journal.note(format!("pause {}", self.name));
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.journal.note(format!("resume {}", self.name));
        Ok(())
    }

    async fn checkpoint(&self, image: PathBuf, exit: bool) -> Result<()> {
        self.journal.note(format!("checkpoint {} {} {exit}", self.name, image.display()));
        Ok(())
    }

    async fn delete(&self) -> Result<()> {
        let delay = *self.delay.lock();
        tokio::time::sleep(delay).await;
        self.journal.note(format!("delete {}", self.name));
        Ok(())
    }
}

#[async_trait]
impl Prepared for FakePrepared {
    async fn start(self: Box<Self>, early: Early) -> Result<Arc<dyn Running>> {
        tokio::time::sleep(self.delay).await;
        let process = self.process;
        if self.init.exit.1.seen().is_some() {
            let message = format!("{}: its container has exited", process.name);
            return Err(Error::new(Kind::FailedPrecondition, message));
        }
        process.journal.note(format!("start {}", process.name));
        if let Some(size) = early.size {
            process.resize(size).await?;
        }
        if early.stdin_closed {
            process.close_stdin().await?;
        }
        Ok(process)
    }

    async fn abandon(self: Box<Self>) {
        self.process.journal.note(format!("abandon {}", self.process.name));
        self.process.end(Exit::KILLED);
    }
}

#[async_trait]
impl Running for FakeProcess {
    /// SIGKILL and SIGTERM end it, as they end most programs.
    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        if self.exit.1.seen().is_some() {
            return Err(Error::new(Kind::NotFound, format!("{} has exited", self.name)));
        }
        let all = if all { " all" } else { "" };
        self.journal.note(format!("signal {} {signal}{all}", self.name));
        if matches!(signal, libc::SIGKILL | libc::SIGTERM) {
            self.end(128 + signal.unsigned_abs());
        }
        Ok(())
    }

    async fn wait(&self) -> Ended {
        let exit = self.exit.1.wait().await;
        Ended { exit, oom_killed: self.oom_killed.load(Ordering::SeqCst) }
    }

    /// It has no output.
    async fn drain(&self) {}

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.journal.note(format!("resize {} {}x{}", self.name, size.width, size.height));
        Ok(())
    }

    async fn close_stdin(&self) -> Result<()> {
        self.journal.note(format!("close stdin of {}", self.name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bundle::Bundle;
    use crate::contract::{self, Subject};
    use crate::request::StdioPaths;

    struct Fake {
        dir: tempfile::TempDir,
        backend: Arc<FakeBackend>,
    }

    #[async_trait]
    impl Subject for Fake {
        fn backend(&self) -> Arc<dyn Backend> {
            Arc::clone(&self.backend) as _
        }

        fn container(&self, id: &str) -> CreateContainer {
            let bundle = self.dir.path().join(id);
            fs::create_dir_all(bundle.join("rootfs")).unwrap();
            fs::write(bundle.join("config.json"), "{\"ociVersion\":\"1.1.0\"}").unwrap();
            CreateContainer {
                id: Id::new(id).unwrap(),
                bundle: Bundle::load(bundle).unwrap(),
                rootfs: Vec::new(),
                stdio: StdioPaths::default(),
                checkpoint: None,
            }
        }

        fn exec(&self, _container: &str, id: &str) -> ExecProcess {
            let spec = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["x"]});
            ExecProcess {
                id: Id::new(id).unwrap(),
                spec: serde_json::from_value(spec).unwrap(),
                stdio: StdioPaths::default(),
            }
        }

        async fn end(&self, container: &str, exec: Option<&str>, status: u32) {
            let container = self.backend.container(container).unwrap();
            match exec {
                Some(exec) => container.end_exec(exec, status),
                None => container.end(status),
            }
        }
    }

    #[tokio::test]
    async fn keeps_what_every_backend_promises() {
        for delay in [Duration::ZERO, Duration::from_millis(50)] {
            let dir = tempfile::tempdir().unwrap();
            let backend = Arc::new(FakeBackend::default());
            backend.steps_take(delay);
            contract::holds(&Fake { dir, backend }).await;
        }
    }
}
