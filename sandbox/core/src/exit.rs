//! How a process exited.

use std::sync::Arc;

use sandbox_host::Exit;
use tokio::sync::watch;

/// A process's exit with its cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Status and time.
    pub exit: Exit,
    /// Whether the kernel's out-of-memory killer ended it, or the sandbox around it.
    pub oom_killed: bool,
}

impl Ended {
    /// Killed by a SIGKILL, seen now.
    pub fn killed() -> Self {
        Self { exit: Exit::now(Exit::KILLED), oom_killed: false }
    }
}

/// An exit that is set once and awaited any number of times.
#[derive(Debug, Clone, Default)]
pub struct ExitCell(Arc<watch::Sender<Option<Exit>>>);

impl ExitCell {
    /// An exit that is still to come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the exit; the first one counts.
    pub fn set(&self, exit: Exit) {
        self.0.send_if_modified(|seen| {
            let first = seen.is_none();
            seen.get_or_insert(exit);
            first
        });
    }

    /// The exit, if it was set already.
    pub fn get(&self) -> Option<Exit> {
        *self.0.borrow()
    }

    /// Waits for it.
    pub async fn wait(&self) -> Exit {
        let mut seen = self.0.subscribe();
        match seen.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // `self` holds the sender, so it cannot be closed.
            Ok(None) | Err(_) => Exit::now(Exit::KILLED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_exit_counts() {
        let cell = ExitCell::new();
        assert_eq!(cell.get(), None);
        cell.set(Exit::now(7));
        cell.set(Exit::now(9));
        assert_eq!(cell.wait().await.status, 7);
    }
}
