//! Waiting for containers to end.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::{ContainerState, ContainerStatus};

use super::PlayError;
use super::start::Started;
use crate::cri::Cri;
use crate::logs::Follower;

/// How long an exit may stay unseen when the log's closing does not announce it: a process that the container
/// left behind can hold the log open.
const LOOK_WITH_LOG: Duration = Duration::from_millis(500);
/// How often to look where no log is watched.
const LOOK: Duration = Duration::from_millis(100);
/// Once the log is closed the exit is due.
const LOOK_SOON: Duration = Duration::from_millis(5);
const SOON: u32 = 100;
/// As much of a termination message as the kubelet reads.
const MESSAGE_LIMIT: u64 = 4096;

/// A container that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pod: String,
    pub(crate) name: String,
    pub(crate) code: i32,
    /// When, in nanoseconds of the Unix epoch.
    pub(crate) at: i64,
    /// What the runtime says of it, such as `OOMKilled`.
    pub(crate) reason: String,
    /// What the container wrote to its terminationMessagePath.
    pub(crate) message: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pod {}: container {} exited with {}", self.pod, self.name, self.code)?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message.trim_end())?;
        }
        Ok(())
    }
}

impl Ended {
    /// The exit code as a program can give it back.
    pub(crate) fn exit_code(&self) -> u8 {
        u8::try_from(self.code).unwrap_or(u8::MAX)
    }
}

/// The container that failed first, if any failed.
pub(super) fn first_failure(ended: &[Ended]) -> Option<&Ended> {
    ended.iter().filter(|it| it.code != 0).min_by_key(|it| it.at)
}

/// Waits until a container has ended and its log is printed whole.
pub(crate) async fn until_ended(cri: &Cri, mut started: Started) -> Result<Ended, PlayError> {
    let status = exit(cri, &started.id, started.log.as_mut()).await?;
    if let Some(log) = started.log {
        // The runtime reports an exit only after it has written the whole log.
        log.finish().await?;
    }
    let reason = if status.reason == "Completed" || status.reason == "Error" {
        String::new()
    } else {
        status.reason
    };
    let ended = Ended {
        pod: started.pod,
        name: started.name,
        code: status.exit_code,
        at: status.finished_at,
        reason,
        message: message(&started.message),
    };
    if ended.code != 0 {
        eprintln!("bulkhead: {ended}");
    }
    Ok(ended)
}

async fn exit(
    cri: &Cri,
    id: &str,
    mut log: Option<&mut Follower>,
) -> Result<ContainerStatus, PlayError> {
    let closed = log.as_ref().map(|log| log.closed());
    let mut soon = 0;
    loop {
        let status = cri.container_status(id).await?;
        if status.state == i32::from(ContainerState::ContainerExited) {
            return Ok(status);
        }
        let Some(closed) = &closed else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let pause = if soon > 0 { LOOK_SOON } else { LOOK_WITH_LOG };
        soon = u32::saturating_sub(soon, 1);
        tokio::select! {
            () = closed.notified() => soon = SOON,
            () = tokio::time::sleep(pause) => {}
        }
        if let Some(log) = &mut log {
            log.check()?;
        }
    }
}

fn message(path: &Path) -> String {
    let mut bytes = Vec::new();
    // A message that cannot be read is none: the exit code is what counts.
    let read = File::open(path).and_then(|file| file.take(MESSAGE_LIMIT).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, code: i32, at: i64) -> Ended {
        let (pod, name) = ("ns/web".to_owned(), name.to_owned());
        Ended { pod, name, code, at, reason: String::new(), message: String::new() }
    }

    #[test]
    fn the_earliest_failure_counts() {
        let all = [ended("a", 3, 30), ended("b", 0, 10), ended("c", 4, 20)];
        assert_eq!(first_failure(&all), Some(&all[2]));
        assert_eq!(first_failure(&all[1..2]), None);
    }

    #[test]
    fn an_end_in_words() {
        let mut end = ended("main", 137, 0);
        assert_eq!(end.to_string(), "Pod ns/web: container main exited with 137");
        end.reason = "OOMKilled".to_owned();
        end.message = "last words\n".to_owned();
        let wanted = "Pod ns/web: container main exited with 137 (OOMKilled): last words";
        assert_eq!(end.to_string(), wanted);
        assert_eq!((end.exit_code(), ended("a", -1, 0).exit_code()), (137, 255));
    }
}
