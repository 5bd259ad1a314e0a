//! A host that only records calls, for tests of what a backend would do.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bind::Bind;
use crate::command::{Command, Output};
use crate::exit::Exit;
use crate::host::Host;
use crate::host_error::HostError;
use crate::mount::RootfsMount;
use crate::mount_error::MountError;
use crate::owned::OwnedBind;
use crate::reaper::{Child, ExitWatch};

/// The result of one [`Host::run`].
#[derive(Debug)]
pub enum Scripted {
    /// It exits with this status and standard output.
    Ends(u32, Vec<u8>),
    /// It does not exit before the deadline.
    Hangs,
    /// It cannot be started.
    Missing,
}

/// Records every command and mount; takes the results of `run` from a script (status 0 and no
/// output when the script is empty). Spawned and watched processes exit on [`FakeHost::end`].
/// [`Host::with_private_mounts`] returns the same host.
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
    /// A host whose calls of `run` have the results `script`, in order.
    pub fn new(script: impl IntoIterator<Item = Scripted>) -> Self {
        let state = State { script: script.into_iter().collect(), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The arguments of every command so far, the program's file name first.
    pub fn commands(&self) -> Vec<Vec<String>> {
        let line = |command: &Command| {
            let name = command.program().file_name().unwrap_or_default();
            let mut line = vec![name.to_string_lossy().into_owned()];
            line.extend(command.arguments());
            line
        };
        self.0.lock().commands.iter().map(line).collect()
    }

    /// The current mount points.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.0.lock().mounted.clone()
    }

    /// Every bind mount so far: source, target and attributes.
    pub fn binds(&self) -> Vec<(PathBuf, PathBuf, Bind)> {
        self.0.lock().binds.clone()
    }

    /// Lets a spawned or watched process exit.
    pub fn end(&self, pid: u32, status: u32) {
        for (_, sender) in self.0.lock().exits.iter().filter(|(known, _)| *known == pid) {
            sender.send_replace(Some(Exit::now(status)));
        }
    }
}

#[async_trait]
impl Host for FakeHost {
    async fn run(&self, command: Command, deadline: Duration) -> Result<Output, HostError> {
        let program = command.program().display().to_string();
        let summary = command.summary();
        let result = {
            let mut state = self.0.lock();
            state.commands.push(command);
            state.script.pop_front()
        };
        match result.unwrap_or(Scripted::Ends(0, Vec::new())) {
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
        let mut state = self.0.lock();
        state.commands.push(command);
        let pid = u32::try_from(state.exits.len()).unwrap_or(0) + 1000;
        let (sender, exit) = ExitWatch::pair();
        state.exits.push((pid, sender));
        Ok(Child { pid, exit })
    }

    fn watch(&self, pid: u32) -> Result<ExitWatch, HostError> {
        let (sender, exit) = ExitWatch::pair();
        self.0.lock().exits.push((pid, sender));
        Ok(exit)
    }

    fn mount(&self, _mount: &RootfsMount, target: &Path) -> Result<(), MountError> {
        self.0.lock().mounted.push(target.to_owned());
        Ok(())
    }

    fn bind(&self, source: &Path, target: &Path, how: Bind) -> Result<(), MountError> {
        let mut state = self.0.lock();
        state.mounted.push(target.to_owned());
        state.binds.push((source.to_owned(), target.to_owned(), how));
        Ok(())
    }

    fn bind_owned(&self, _source: &Path, target: &Path, _how: OwnedBind) -> Result<(), MountError> {
        self.0.lock().mounted.push(target.to_owned());
        Ok(())
    }

    fn unmount_all(&self, target: &Path) -> Result<(), MountError> {
        self.0.lock().mounted.retain(|point| !point.starts_with(target));
        Ok(())
    }

    fn with_private_mounts(&self, _keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError> {
        Ok(Arc::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_calls_and_follows_the_script() {
        let host = FakeHost::new([Scripted::Ends(3, b"x".to_vec()), Scripted::Hangs]);
        let second = Duration::from_secs(1);
        let run = |verb: &str| host.run(Command::new("/bin/runsc").arg("--flag").arg(verb), second);
        assert_eq!(run("state").await.unwrap().exit.status, 3);
        let late = run("wait").await.unwrap_err().to_string();
        assert_eq!(late, "runsc wait did not exit within 1 s and was killed");
        assert_eq!(host.commands()[1], ["runsc", "--flag", "wait"]);
        let child = host.spawn(Command::new("sleep")).unwrap();
        host.end(child.pid, 9);
        assert_eq!(child.exit.wait().await.status, 9);
    }
}
