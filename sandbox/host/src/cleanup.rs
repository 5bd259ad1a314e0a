//! Cleaning up: running every step even if one fails, and killing processes that are not children
//! of this one.

use std::time::Duration;

use crate::error::{Classified, Error, Kind};
use crate::process_ref::ProcessRef;

/// How often to check whether a process still runs, if it is not a child.
const POLL: Duration = Duration::from_millis(5);

/// A process that still runs after SIGKILL.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} did not exit within {seconds} s of SIGKILL")]
pub struct StillRunning {
    /// The process.
    pub pid: u32,
    /// The deadline.
    pub seconds: u64,
}

impl Classified for StillRunning {
    fn kind(&self) -> Kind {
        Kind::DeadlineExceeded
    }
}

/// The first error of several steps; the others are logged.
#[derive(Debug)]
pub struct Steps<E>(Option<E>);

impl<E> Default for Steps<E> {
    fn default() -> Self {
        Self(None)
    }
}

impl<E: Classified> Steps<E> {
    /// Adds the result of a step.
    pub fn take<F: Into<E>>(&mut self, result: Result<(), F>) {
        let Err(error) = result else { return };
        let error = error.into();
        if self.0.is_some() {
            tracing::warn!("a further step of the clean-up failed: {}", Error::from(error));
        } else {
            self.0 = Some(error);
        }
    }

    /// Whether every step so far succeeded.
    pub fn clean(&self) -> bool {
        self.0.is_none()
    }

    /// The result of all steps.
    ///
    /// # Errors
    ///
    /// That of the first step that failed.
    pub fn result(self) -> Result<(), E> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Kills `processes` and waits until they have exited, for `deadline` at most.
///
/// # Errors
///
/// [`StillRunning`] names the first one that has not.
pub async fn kill_all(processes: &[ProcessRef], deadline: Duration) -> Result<(), StillRunning> {
    let killed: Vec<&ProcessRef> = processes.iter().filter(|process| process.kill()).collect();
    let all_gone = async {
        while killed.iter().any(|process| process.alive()) {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(deadline, all_gone).await.is_ok() {
        return Ok(());
    }
    match killed.iter().find(|process| process.alive()) {
        Some(process) => Err(StillRunning { pid: process.pid, seconds: deadline.as_secs() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::host::Host;
    use crate::real::RealHost;

    #[test]
    fn the_first_error_is_returned() {
        let failed = |pid| Err::<(), _>(StillRunning { pid, seconds: 1 });
        let mut steps = Steps::<StillRunning>::default();
        steps.take(Ok::<(), StillRunning>(()));
        assert!(steps.clean());
        steps.take(failed(1));
        steps.take(failed(2));
        assert_eq!(steps.result().unwrap_err().pid, 1);
    }

    #[tokio::test]
    async fn kills_the_processes_and_spares_others_with_the_same_id() {
        let host = RealHost::new().unwrap();
        let child = host.spawn(Command::new("/bin/sleep").arg("100")).unwrap();
        let living = ProcessRef::of(child.pid).unwrap();
        let other = ProcessRef { pid: std::process::id(), start_time: 1 };
        kill_all(&[living, other], Duration::from_secs(10)).await.unwrap();
        assert!(!living.alive());
        assert_eq!(child.exit.wait().await.status, 137);
    }
}
