//! A backend without a sandbox, for tests of what stands above one: its processes end when the
//! test says so, and it remembers what was asked of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::host::ExitWatch;
use crate::request::{CreateContainer, ExecProcess, Resources, Role};
use crate::sandbox::{Backend, Container, Process, ProcessInfo, Sandbox};
use crate::stats::Stats;
use crate::{Exit, Id};

/// What was asked of a fake, in order: `create c1`, `start c1`, `signal c1 9`, ...
#[derive(Debug, Default, Clone)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn entries(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, entry: String) {
        self.entries().push(entry);
    }

    /// Everything so far.
    pub fn read(&self) -> Vec<String> {
        self.entries().clone()
    }
}

/// Makes fake sandboxes.
#[derive(Debug, Default)]
pub struct FakeBackend {
    /// What was asked of it and of all that it made.
    pub journal: Journal,
    made: Arc<Mutex<Vec<Arc<FakeContainer>>>>,
}

/// A sandbox that holds fake containers.
#[derive(Debug)]
pub struct FakeSandbox {
    journal: Journal,
    made: Arc<Mutex<Vec<Arc<FakeContainer>>>>,
    exit: (watch::Sender<Option<Exit>>, ExitWatch),
}

/// A container whose processes end on demand.
#[derive(Debug)]
pub struct FakeContainer {
    name: String,
    journal: Journal,
    init: Arc<FakeProcess>,
    execs: Mutex<Vec<Arc<FakeProcess>>>,
    oom: Mutex<bool>,
}

/// A process that ends on demand.
#[derive(Debug)]
pub struct FakeProcess {
    name: String,
    journal: Journal,
    started: AtomicBool,
    exit: (watch::Sender<Option<Exit>>, ExitWatch),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeBackend {
    /// The container with this id.
    pub fn container(&self, id: &str) -> Option<Arc<FakeContainer>> {
        locked(&self.made).iter().rev().find(|container| container.name == id).cloned()
    }
}

impl FakeContainer {
    /// Ends the first process.
    pub fn end(&self, status: u32) {
        self.init.end(status);
    }

    /// Ends an exec.
    pub fn end_exec(&self, id: &str, status: u32) {
        for exec in locked(&self.execs).iter().filter(|exec| exec.name.ends_with(id)) {
            exec.end(status);
        }
    }

    /// Ends everything as the out-of-memory killer does.
    pub fn run_out_of_memory(&self) {
        *locked(&self.oom) = true;
        self.end(Exit::KILLED);
    }
}

impl FakeProcess {
    fn new(name: String, journal: &Journal) -> Arc<Self> {
        let (journal, started) = (journal.clone(), AtomicBool::new(false));
        Arc::new(Self { name, journal, started, exit: ExitWatch::pair() })
    }

    /// Fails unless the process runs.
    fn check_runs(&self) -> Result<()> {
        if self.exit.1.seen().is_some() {
            return Err(Error::new(Kind::NotFound, format!("{} has ended", self.name)));
        }
        if !self.started.load(Ordering::SeqCst) {
            let message = format!("{} has not been started", self.name);
            return Err(Error::new(Kind::FailedPrecondition, message));
        }
        Ok(())
    }

    /// Ends it; the first end counts.
    fn end(&self, status: u32) {
        self.exit.0.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert_with(|| Exit::now(status));
            first
        });
    }
}

#[async_trait]
impl Backend for FakeBackend {
    async fn open(&self) -> Result<Arc<dyn Sandbox>> {
        self.journal.note("open".to_owned());
        Ok(Arc::new(FakeSandbox {
            journal: self.journal.clone(),
            made: Arc::clone(&self.made),
            exit: ExitWatch::pair(),
        }))
    }

    async fn purge(&self, id: &Id, _bundle: &Path) -> Result<()> {
        self.journal.note(format!("purge {id}"));
        Ok(())
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn create(&self, request: CreateContainer) -> Result<Arc<dyn Container>> {
        let name = request.id.to_string();
        if let Role::Member { sandbox } = &request.role {
            if !locked(&self.made).iter().any(|made| made.name == sandbox.as_str()) {
                let message = format!("{name} belongs to sandbox {sandbox}, which is not here");
                return Err(Error::new(Kind::FailedPrecondition, message));
            }
        }
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
            oom: Mutex::new(false),
        });
        locked(&self.made).push(Arc::clone(&container));
        if request.role == Role::Sandbox {
            // The sandbox goes with the container that made it.
            let (init, made) = (Arc::clone(&container.init), Arc::clone(&self.made));
            let ended = self.exit.0.clone();
            tokio::spawn(async move {
                let exit = init.wait().await;
                for container in locked(&made).iter() {
                    container.end(Exit::KILLED);
                }
                ended.send_replace(Some(exit));
            });
        }
        Ok(container)
    }

    async fn stop(&self) -> Result<()> {
        self.journal.note("stop".to_owned());
        for container in locked(&self.made).iter() {
            container.end(Exit::KILLED);
        }
        self.exit.0.send_replace(Some(Exit::now(Exit::KILLED)));
        Ok(())
    }

    async fn exited(&self) -> Exit {
        self.exit.1.wait().await
    }
}

#[async_trait]
impl Container for FakeContainer {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as _
    }

    async fn exec(&self, request: ExecProcess) -> Result<Arc<dyn Process>> {
        self.init.check_runs()?;
        let exec = FakeProcess::new(format!("{}/{}", self.name, request.id), &self.journal);
        locked(&self.execs).push(Arc::clone(&exec));
        Ok(exec)
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

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        Ok(vec![ProcessInfo { pid: 1, exec_id: None }])
    }

    async fn checkpoint(&self, image: PathBuf, exit: bool) -> Result<()> {
        self.journal.note(format!("checkpoint {} {} {exit}", self.name, image.display()));
        Ok(())
    }

    async fn delete(&self) -> Result<()> {
        self.journal.note(format!("delete {}", self.name));
        Ok(())
    }

    async fn oom_killed(&self) -> bool {
        *locked(&self.oom)
    }
}

#[async_trait]
impl Process for FakeProcess {
    fn pid(&self) -> u32 {
        4242
    }

    async fn start(&self) -> Result<()> {
        if self.started.swap(true, Ordering::SeqCst) {
            let message = format!("{} was already started", self.name);
            return Err(Error::new(Kind::FailedPrecondition, message));
        }
        self.journal.note(format!("start {}", self.name));
        Ok(())
    }

    /// SIGKILL and SIGTERM end it, as they end most programs.
    async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        self.check_runs()?;
        self.journal.note(format!(
            "signal {} {signal}{}",
            self.name,
            if all { " all" } else { "" }
        ));
        if matches!(signal, libc::SIGKILL | libc::SIGTERM) {
            self.end(128 + signal.unsigned_abs());
        }
        Ok(())
    }

    async fn wait(&self) -> Exit {
        self.exit.1.wait().await
    }

    async fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.journal.note(format!("resize {} {width}x{height}", self.name));
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

        fn container(&self, id: &str, role: Role) -> CreateContainer {
            let bundle = self.dir.path().join(id);
            fs::create_dir_all(bundle.join("rootfs")).unwrap();
            fs::write(bundle.join("config.json"), "{\"ociVersion\":\"1.1.0\"}").unwrap();
            CreateContainer {
                id: Id::new(id).unwrap(),
                role,
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
        let dir = tempfile::tempdir().unwrap();
        contract::holds(&Fake { dir, backend: Arc::default() }).await;
    }
}
