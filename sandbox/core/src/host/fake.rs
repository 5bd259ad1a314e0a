//! A host that does nothing but remember, for tests of what a backend would do.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Bind, Child, Command, ExitWatch, Host, HostError, Loan, MountError, Output};
use crate::exit::Exit;
use crate::request::RootfsMount;

/// The answer to one [`Host::run`].
#[derive(Debug)]
pub enum Scripted {
    /// It ends with this status and standard output.
    Ends(u32, Vec<u8>),
    /// It never ends: the deadline runs out.
    Hangs,
    /// It cannot be started.
    Missing,
}

/// Remembers every command and mount; answers `run` from a script (status 0 and no output when
/// the script is empty). Spawned and watched processes end when the test says so.
/// A host apart from it is the same one.
#[derive(Debug, Default, Clone)]
pub struct FakeHost(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    script: VecDeque<Scripted>,
    commands: Vec<Command>,
    exits: Vec<(u32, watch::Sender<Option<Exit>>)>,
    mounted: Vec<PathBuf>,
    binds: Vec<(PathBuf, PathBuf, Bind)>,
}

impl FakeHost {
    /// A host that answers `run` with `script`, in order.
    pub fn new(script: impl IntoIterator<Item = Scripted>) -> Self {
        let state = State { script: script.into_iter().collect(), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The arguments of every command so far, the program's file name first.
    pub fn commands(&self) -> Vec<Vec<String>> {
        let line = |command: &Command| {
            let name = command.program().file_name().unwrap_or_default();
            let mut line = vec![name.to_string_lossy().into_owned()];
            line.extend(command.arguments());
            line
        };
        self.state().commands.iter().map(line).collect()
    }

    /// What is mounted now.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.state().mounted.clone()
    }

    /// Every bind mount so far: source, target and how.
    pub fn binds(&self) -> Vec<(PathBuf, PathBuf, Bind)> {
        self.state().binds.clone()
    }

    /// Ends a spawned or watched process.
    pub fn end(&self, pid: u32, status: u32) {
        for (_, sender) in self.state().exits.iter().filter(|(known, _)| *known == pid) {
            sender.send_replace(Some(Exit::now(status)));
        }
    }
}

#[async_trait]
impl Host for FakeHost {
    async fn run(&self, command: Command, deadline: Duration) -> Result<Output, HostError> {
        let (program, summary) = (command.program().display().to_string(), command.summary());
        let answer = {
            let mut state = self.state();
            state.commands.push(command);
            state.script.pop_front()
        };
        match answer.unwrap_or(Scripted::Ends(0, Vec::new())) {
            Scripted::Ends(status, stdout) => {
                Ok(Output { exit: Exit::now(status), stdout, stderr: Vec::new() })
            }
            Scripted::Hangs => {
                Err(HostError::Deadline { command: summary, seconds: deadline.as_secs() })
            }
            Scripted::Missing => {
                let source = std::io::ErrorKind::NotFound.into();
                Err(HostError::Spawn { program, source })
            }
        }
    }

    fn spawn(&self, command: Command) -> Result<Child, HostError> {
        let mut state = self.state();
        state.commands.push(command);
        let pid = u32::try_from(state.exits.len()).unwrap_or(0) + 1000;
        let (sender, exit) = ExitWatch::pair();
        state.exits.push((pid, sender));
        Ok(Child { pid, exit })
    }

    fn watch(&self, pid: u32) -> Result<ExitWatch, HostError> {
        let (sender, exit) = ExitWatch::pair();
        self.state().exits.push((pid, sender));
        Ok(exit)
    }

    fn mount(&self, _mount: &RootfsMount, target: &Path) -> Result<(), MountError> {
        self.state().mounted.push(target.to_owned());
        Ok(())
    }

    fn bind(&self, source: &Path, target: &Path, how: Bind) -> Result<(), MountError> {
        let mut state = self.state();
        state.mounted.push(target.to_owned());
        state.binds.push((source.to_owned(), target.to_owned(), how));
        Ok(())
    }

    fn lend(&self, _source: &Path, target: &Path, _to: Loan) -> Result<(), MountError> {
        self.state().mounted.push(target.to_owned());
        Ok(())
    }

    fn unmount_all(&self, target: &Path) -> Result<(), MountError> {
        self.state().mounted.retain(|point| !point.starts_with(target));
        Ok(())
    }

    fn apart(&self, _keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError> {
        Ok(Arc::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn remembers_and_answers() {
        let host = FakeHost::new([Scripted::Ends(3, b"x".to_vec()), Scripted::Hangs]);
        let second = Duration::from_secs(1);
        let run = |verb: &str| host.run(Command::new("/bin/runsc").arg("--flag").arg(verb), second);
        assert_eq!(run("state").await.unwrap().exit.status, 3);
        let late = run("wait").await.unwrap_err().to_string();
        assert_eq!(late, "runsc wait did not end within 1 s and was killed");
        assert_eq!(host.commands()[1], ["runsc", "--flag", "wait"]);
        let child = host.spawn(Command::new("sleep")).unwrap();
        host.end(child.pid, 9);
        assert_eq!(child.exit.wait().await.status, 9);
    }
}
