//! Waiting for containers to exit.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1::{ContainerState, ContainerStatus};

use crate::cri::{Cri, CriError};
use crate::logs::{Follower, LogError};

/// The pause between looks while a log is watched. Its closing announces the exit, unless another process that the
/// container left behind still has it open.
const LOOK_WITH_LOG: Duration = Duration::from_millis(500);
/// The pause between looks without a log.
const LOOK: Duration = Duration::from_millis(100);
/// The pause between looks after the log was closed.
const LOOK_SOON: Duration = Duration::from_millis(5);
/// The number of those looks.
const SOON: u32 = 100;
/// As much of a termination message as the kubelet reads.
const MESSAGE_LIMIT: u64 = 4096;

/// Why a container's exit could not be awaited.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// Its log could not be shown.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A container that was started.
#[derive(Debug)]
pub struct StartedContainer {
    /// The Pod's namespace and name.
    pub pod: String,
    /// The container's name in the Pod.
    pub name: String,
    /// The runtime's id.
    pub id: String,
    /// Shows its log, if that is wanted.
    pub log: Option<Follower>,
    /// The file behind its terminationMessagePath.
    pub message: PathBuf,
}

/// A container that has exited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// The Pod's namespace and name.
    pub pod: String,
    /// The container's name in the Pod.
    pub name: String,
    /// The exit code, 128 plus the signal's number after a signal.
    pub code: i32,
    /// The time of the exit, in nanoseconds since the Unix epoch.
    pub at: i64,
    /// The runtime's reason, such as `OOMKilled`.
    pub reason: String,
    /// What the container wrote to its terminationMessagePath.
    pub message: String,
}

impl std::fmt::Display for Exited {
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

impl Exited {
    /// The exit code as this process can return it.
    pub fn exit_code(&self) -> u8 {
        u8::try_from(self.code).unwrap_or(u8::MAX)
    }
}

/// The container that failed first, if any failed.
pub fn first_failure(exited: &[Exited]) -> Option<&Exited> {
    exited.iter().filter(|it| it.code != 0).min_by_key(|it| it.at)
}

/// Waits until a container has exited and its log is printed completely; reports a failure.
///
/// # Errors
///
/// [`WaitError`] when the runtime does not answer or the log cannot be shown.
pub async fn until_exit(cri: &Cri, mut started: StartedContainer) -> Result<Exited, WaitError> {
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
    let exited = Exited {
        pod: started.pod,
        name: started.name,
        code: status.exit_code,
        at: status.finished_at,
        reason,
        message: message(&started.message),
    };
    if exited.code != 0 {
        cri.reporter().line(&exited.to_string());
    }
    Ok(exited)
}

/// As [`until_exit`], but kills the container after the Pod's activeDeadlineSeconds.
///
/// # Errors
///
/// As [`until_exit`].
pub async fn until_deadline(
    cri: &Cri,
    started: StartedContainer,
    deadline: Option<i64>,
) -> Result<Exited, WaitError> {
    let Some(seconds) = deadline else { return until_exit(cri, started).await };
    let id = started.id.clone();
    let described = format!("Pod {}: container {}", started.pod, started.name);
    let exited = until_exit(cri, started);
    tokio::pin!(exited);
    let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    tokio::select! {
        result = &mut exited => return result,
        () = tokio::time::sleep(limit) => {}
    }
    cri.reporter().line(&format!(
        "{described} runs longer than activeDeadlineSeconds ({seconds}); killing it"
    ));
    cri.stop_container(&id, 0).await?;
    exited.await
}

async fn exit(
    cri: &Cri,
    id: &str,
    mut log: Option<&mut Follower>,
) -> Result<ContainerStatus, WaitError> {
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
    // An unreadable message is none: the exit code matters.
    let read = File::open(path).and_then(|file| file.take(MESSAGE_LIMIT).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(name: &str, code: i32, at: i64) -> Exited {
        let pod = "ns/web".to_owned();
        let name = name.to_owned();
        Exited { pod, name, code, at, reason: String::new(), message: String::new() }
    }

    #[test]
    fn the_earliest_failure_counts() {
        let all = [exited("a", 3, 30), exited("b", 0, 10), exited("c", 4, 20)];
        assert_eq!(first_failure(&all), Some(&all[2]));
        assert_eq!(first_failure(&all[1..2]), None);
    }

    #[test]
    fn an_exit_in_words() {
        let mut main = exited("main", 137, 0);
        assert_eq!(main.to_string(), "Pod ns/web: container main exited with 137");
        main.reason = "OOMKilled".to_owned();
        main.message = "last words\n".to_owned();
        let wanted = "Pod ns/web: container main exited with 137 (OOMKilled): last words";
        assert_eq!(main.to_string(), wanted);
        assert_eq!((main.exit_code(), exited("a", -1, 0).exit_code()), (137, 255));
    }
}
