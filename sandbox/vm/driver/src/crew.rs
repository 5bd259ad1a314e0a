//! The processes that live for one machine: started together, ended together.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use sandbox_core::Exit;
use sandbox_core::host::{
    Command, ExitWatch, Host, Paths, ProcessMark, Resource, User, find_program,
};

use crate::bounded_log::BoundedLog;
use crate::error::DriverError;
use crate::files::{installed, paths};
use crate::user;
use crate::vmm::Machine;

/// How much of a process's stderr goes to its log file.
const LOG_MAX: u64 = 64 * 1024;
/// How long a process may take to end after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long after its connection a process may end, for the end to be the connection's reason.
const END_SOON: Duration = Duration::from_secs(2);

/// One process.
#[derive(Debug)]
struct Member {
    program: &'static str,
    pid: u32,
    mark: Option<ProcessMark>,
    exit: ExitWatch,
    log: BoundedLog,
}

impl Member {
    fn kill(&self) {
        if let (None, Some(mark)) = (self.exit.seen(), self.mark) {
            mark.kill();
        }
    }

    async fn ended(&self) -> DriverError {
        let exit = self.exit.wait().await;
        let log = self.log.ending().await;
        DriverError::Ended { program: self.program, status: exit.status, log }
    }
}

/// A machine's processes, the one that stands for the machine last. They are killed when it is
/// dropped before [`Crew::supervise`].
#[derive(Debug)]
pub(crate) struct Crew {
    host: Arc<dyn Host>,
    dir: PathBuf,
    netns: Option<PathBuf>,
    user: Option<u32>,
    /// What of the file system they may use.
    paths: Paths,
    members: Vec<Member>,
    files: Vec<PathBuf>,
}

impl Crew {
    /// Nobody yet, to work for `machine`, whose directory is theirs.
    pub(crate) fn new(host: Arc<dyn Host>, machine: &Machine) -> Result<Self, DriverError> {
        let (dir, netns) = (machine.dir.clone(), machine.netns.clone());
        let (user, paths) = (machine.user, paths(machine));
        let crew = Self { host, dir, netns, user, paths, members: Vec::new(), files: Vec::new() };
        crew.give(&machine.dir)?;
        Ok(crew)
    }

    /// Makes `path` the crew's.
    pub(crate) fn give(&self, path: &Path) -> Result<(), DriverError> {
        let failed = |source| DriverError::File { step: "giving away", path: path.into(), source };
        user::give(path, self.user).map_err(failed)
    }

    /// Starts a process with no privileges, confined to the machine's own files and what every
    /// program needs, and gives its id; what it says goes to `<program>.log`.
    pub(crate) fn start(
        &mut self,
        program: &'static str,
        command: Command,
    ) -> Result<u32, DriverError> {
        self.spawn(program, command, self.paths.clone(), Vec::new())
    }

    /// [`Crew::start`] for a program that runs its guest by KVM, which nobody else may open.
    pub(crate) fn start_on_kvm(
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
        let mark = ProcessMark::of(child.pid);
        self.members.push(Member { program, pid: child.pid, mark, exit: child.exit, log });
        Ok(child.pid)
    }

    /// Removes `file` once everybody has ended.
    pub(crate) fn removes(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    /// Does `work` while everybody lives: a process's end is its failure, and so is `deadline`.
    pub(crate) async fn attended<T>(
        &self,
        step: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let bounded = tokio::time::timeout(deadline, work);
        let done = tokio::select! {
            biased;
            done = bounded => done,
            error = self.anybodys_end() => return Err(error),
        };
        match done {
            Ok(Err(error @ (DriverError::Closed { .. } | DriverError::Io { .. }))) => {
                match tokio::time::timeout(END_SOON, self.anybodys_end()).await {
                    Ok(reason) => Err(reason),
                    Err(_) => Err(error),
                }
            }
            Ok(done) => done,
            Err(_) => {
                let program = self.members.last().map_or("the machine", |member| member.program);
                Err(DriverError::Deadline { program, step: step.to_owned(), after: deadline })
            }
        }
    }

    async fn anybodys_end(&self) -> DriverError {
        if self.members.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.members.iter().map(|member| Box::pin(member.ended()))).await.0
    }

    /// Every process, for the record.
    pub(crate) fn marks(&self) -> Vec<ProcessMark> {
        self.members.iter().filter_map(|member| member.mark).collect()
    }

    /// Kills everybody.
    pub(crate) fn kill(&self) {
        self.members.iter().for_each(Member::kill);
    }

    /// Kills everybody and waits for their end.
    pub(crate) async fn stop(&self) -> Result<(), DriverError> {
        self.kill();
        for member in &self.members {
            if tokio::time::timeout(KILL_DEADLINE, member.exit.wait()).await.is_err() {
                let (program, pid) = (member.program, member.pid);
                let seconds = KILL_DEADLINE.as_secs();
                return Err(DriverError::StillRunning { program, pid, seconds });
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

    /// From now on the first one's end is everybody's; the answer resolves to the end of the
    /// process that stands for the machine.
    pub(crate) fn supervise(self) -> (Arc<Self>, ExitWatch) {
        let crew = Arc::new(self);
        let (sender, ended) = ExitWatch::pair();
        let own = Arc::clone(&crew);
        // It ends with the processes; the one that holds the machine's `Vmm` ends them.
        tokio::spawn(async move {
            let first = own.anybodys_end().await;
            tracing::info!("a machine ends: {}", sandbox_core::Error::from(first));
            if let Err(error) = own.stop().await {
                tracing::error!("{}", sandbox_core::Error::from(error));
            }
            let exit = own.members.last().and_then(|member| member.exit.seen());
            sender.send_replace(Some(exit.unwrap_or_else(|| Exit::now(Exit::KILLED))));
        });
        (crew, ended)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.kill();
        for file in &self.files {
            // Most of the time there is nothing to remove, and nobody left to tell.
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
