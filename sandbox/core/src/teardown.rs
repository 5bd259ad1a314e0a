//! Taking things down: every step whether or not another one failed, and the end of processes
//! that nobody here started.

use std::time::Duration;

use crate::error::{Classified, Error, Kind};
use crate::host::ProcessMark;

/// How often an ended process is looked for where nobody tells.
const LOOK: Duration = Duration::from_millis(5);

/// A killed process that does not end.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} did not end within {seconds} s of SIGKILL")]
pub struct StillRunning {
    /// The process.
    pub pid: u32,
    /// The bound that ran out.
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
    /// Notes how a step went.
    pub fn take<F: Into<E>>(&mut self, result: Result<(), F>) {
        let Err(error) = result else { return };
        let error = error.into();
        if self.0.is_some() {
            log::warn!("cleaning up: {}", Error::from(error));
        } else {
            self.0 = Some(error);
        }
    }

    /// Whether every step so far went well.
    pub fn clean(&self) -> bool {
        self.0.is_none()
    }

    /// How all of them went.
    ///
    /// # Errors
    ///
    /// The first step's that failed.
    pub fn result(self) -> Result<(), E> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Kills `processes` and waits until they have ended, for `deadline` at most.
///
/// # Errors
///
/// [`StillRunning`] names the first one that stays.
pub async fn end(processes: &[ProcessMark], deadline: Duration) -> Result<(), StillRunning> {
    let killed: Vec<&ProcessMark> = processes.iter().filter(|mark| mark.kill()).collect();
    let all_gone = async {
        while killed.iter().any(|mark| mark.alive()) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(deadline, all_gone).await.is_ok() {
        return Ok(());
    }
    match killed.iter().find(|mark| mark.alive()) {
        Some(mark) => Err(StillRunning { pid: mark.pid, seconds: deadline.as_secs() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Command, Host, RealHost};

    #[test]
    fn the_first_error_counts() {
        let late = |pid| Err::<(), _>(StillRunning { pid, seconds: 1 });
        let mut steps = Steps::<StillRunning>::default();
        steps.take(Ok::<(), StillRunning>(()));
        assert!(steps.clean());
        steps.take(late(1));
        steps.take(late(2));
        assert_eq!(steps.result().unwrap_err().pid, 1);
    }

    #[tokio::test]
    async fn ends_living_processes_and_passes_over_others() {
        let host = RealHost::new().unwrap();
        let child = host.spawn(Command::new("/bin/sleep").arg("100")).unwrap();
        let living = ProcessMark::of(child.pid).unwrap();
        let other = ProcessMark { pid: std::process::id(), start_time: 1 };
        end(&[living, other], Duration::from_secs(10)).await.unwrap();
        assert!(!living.alive());
        assert_eq!(child.exit.wait().await.status, 137);
    }
}
