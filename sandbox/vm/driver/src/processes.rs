//! The processes of one VM: started together, and stopped together when the first one exits.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use sandbox_host::{
    Command, Exit, ExitWatch, Host, Paths, ProcessRef, Resource, User, find_program,
};

use crate::bounded_log::BoundedLog;
use crate::error::DriverError;
use crate::files::{installed, paths};
use crate::user;
use crate::vmm::VmPlan;

/// How much of a process's stderr goes to its log file, in bytes.
const LOG_MAX: u64 = 64 * 1024;
/// How long a process may take to exit after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait for a process's exit after its connection broke, to report it as the cause.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// One process.
#[derive(Debug)]
struct Process {
    program: &'static str,
    pid: u32,
    mark: Option<ProcessRef>,
    exit: ExitWatch,
    log: BoundedLog,
}

impl Process {
    fn kill(&self) {
        if let (None, Some(mark)) = (self.exit.seen(), self.mark) {
            mark.kill();
        }
    }

    async fn exited(&self) -> DriverError {
        let exit = self.exit.wait().await;
        let log = self.log.ending().await;
        DriverError::Exited { program: self.program, status: exit.status, log }
    }
}

/// The processes of a VM; the last one is the VMM. Unless [`Processes::supervise`] was called,
/// dropping it kills them.
#[derive(Debug)]
pub(crate) struct Processes {
    host: Arc<dyn Host>,
    dir: PathBuf,
    netns: Option<PathBuf>,
    user: Option<u32>,
    /// The files that they may use.
    paths: Paths,
    started: Vec<Process>,
    /// Files to remove after their exit.
    files: Vec<PathBuf>,
}

impl Processes {
    /// No processes yet; those of `vm` will own its directory.
    pub(crate) fn new(host: Arc<dyn Host>, vm: &VmPlan) -> Result<Self, DriverError> {
        let processes = Self {
            host,
            dir: vm.dir.clone(),
            netns: vm.netns.clone(),
            user: vm.user,
            paths: paths(vm),
            started: Vec::new(),
            files: Vec::new(),
        };
        processes.chown(&vm.dir)?;
        Ok(processes)
    }

    /// Makes their user the owner of `path`.
    pub(crate) fn chown(&self, path: &Path) -> Result<(), DriverError> {
        let failed =
            |source| DriverError::File { step: "changing the owner of", path: path.into(), source };
        user::chown(path, self.user).map_err(failed)
    }

    /// Starts a process without privileges, confined to the VM's files and those of the system,
    /// and returns its id. Its output goes to `<program>.log`.
    pub(crate) fn start(
        &mut self,
        program: &'static str,
        command: Command,
    ) -> Result<u32, DriverError> {
        self.spawn(program, command, self.paths.clone(), Vec::new())
    }

    /// [`Processes::start`] with access to KVM, which no other process of the VM has.
    pub(crate) fn start_with_kvm(
        &mut self,
        program: &'static str,
        command: Command,
    ) -> Result<u32, DriverError> {
        let mut paths = self.paths.clone();
        paths.files.push(user::KVM.into());
        self.spawn(program, command, paths, user::kvm_group().into_iter().collect())
    }

    fn spawn(
        &mut self,
        program: &'static str,
        command: Command,
        mut paths: Paths,
        groups: Vec<u32>,
    ) -> Result<u32, DriverError> {
        let path = self.dir.join(format!("{program}.log"));
        let log = BoundedLog::piped(&path, LOG_MAX);
        let (log, writer) = log.map_err(DriverError::creating(&path))?;
        let second = writer.try_clone().map_err(|source| DriverError::Io { program, source })?;
        paths.read.extend(find_program(command.program()).into_iter().flat_map(installed));
        let mut command = command
            .confined(paths)
            .stdout(second)
            .stderr(writer)
            .without_privileges()
            // A core would hold the guest's memory.
            .limit(Resource::RLIMIT_CORE, 0);
        if let Some(id) = self.user {
            command = command.user(User { id, groups });
        }
        if let Some(netns) = &self.netns {
            command = command.netns(open(netns)?);
        }
        let child = self.host.spawn(command)?;
        let mark = ProcessRef::of(child.pid);
        self.started.push(Process { program, pid: child.pid, mark, exit: child.exit, log });
        Ok(child.pid)
    }

    /// Removes `file` once all processes have exited.
    pub(crate) fn remove_at_exit(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    /// Runs `work` while all processes live: it fails when one exits, or after `deadline`.
    pub(crate) async fn watched<T>(
        &self,
        step: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let bounded = tokio::time::timeout(deadline, work);
        let done = tokio::select! {
            biased;
            done = bounded => done,
            error = self.first_exit() => return Err(error),
        };
        match done {
            Ok(Err(error @ (DriverError::Closed { .. } | DriverError::Io { .. }))) => {
                match tokio::time::timeout(EXIT_GRACE, self.first_exit()).await {
                    Ok(cause) => Err(cause),
                    Err(_) => Err(error),
                }
            }
            Ok(done) => done,
            Err(_) => {
                let program = self.started.last().map_or("the VM", |process| process.program);
                Err(DriverError::Deadline { program, step: step.to_owned(), after: deadline })
            }
        }
    }

    async fn first_exit(&self) -> DriverError {
        if self.started.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.started.iter().map(|process| Box::pin(process.exited()))).await.0
    }

    /// The marks of all processes, for the record.
    pub(crate) fn marks(&self) -> Vec<ProcessRef> {
        self.started.iter().filter_map(|process| process.mark).collect()
    }

    /// Kills all processes.
    pub(crate) fn kill(&self) {
        self.started.iter().for_each(Process::kill);
    }

    /// Kills all processes, waits for their exit and removes their files.
    pub(crate) async fn stop(&self) -> Result<(), DriverError> {
        self.kill();
        for process in &self.started {
            if tokio::time::timeout(KILL_DEADLINE, process.exit.wait()).await.is_err() {
                return Err(DriverError::StillRunning {
                    program: process.program,
                    pid: process.pid,
                    seconds: KILL_DEADLINE.as_secs(),
                });
            }
        }
        for file in &self.files {
            match std::fs::remove_file(file) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    let path = file.clone();
                    return Err(DriverError::File { step: "removing", path, source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Stops all processes when the first one exits. The watch resolves to the VMM's exit.
    pub(crate) fn supervise(self) -> (Arc<Self>, ExitWatch) {
        let processes = Arc::new(self);
        let (sender, exited) = ExitWatch::pair();
        let supervised = Arc::clone(&processes);
        // It ends with the processes, which the owner of the VM's `Vmm` stops.
        tokio::spawn(async move {
            let cause = supervised.first_exit().await;
            tracing::info!("stopping a VM: {}", sandbox_host::Error::from(cause));
            if let Err(error) = supervised.stop().await {
                tracing::error!("stopping a VM: {}", sandbox_host::Error::from(error));
            }
            let exit = supervised.started.last().and_then(|process| process.exit.seen());
            sender.send_replace(Some(exit.unwrap_or_else(|| Exit::now(Exit::KILLED))));
        });
        (processes, exited)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill();
        for file in &self.files {
            // Mostly already removed by `stop`; there is no caller to report a failure to.
            let _ = std::fs::remove_file(file);
        }
    }
}

fn open(netns: &Path) -> Result<OwnedFd, DriverError> {
    match std::fs::File::open(netns) {
        Ok(file) => Ok(file.into()),
        Err(source) => {
            Err(DriverError::File { step: "opening network namespace", path: netns.into(), source })
        }
    }
}
