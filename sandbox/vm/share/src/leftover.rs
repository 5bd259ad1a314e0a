//! Finding and killing virtiofsd through `/proc`: it forks, and cleanup may run in another process
//! than the one that started it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sandbox_host::ProcessRef;
use tokio::time::{Instant, sleep};

use crate::error::ShareError;
use crate::program::signatures;

/// Polling interval for a killed process, which may not be a child of this one.
const LOOK: Duration = Duration::from_millis(5);

/// The process `mark` and its living children.
pub(crate) fn with_children(mark: ProcessRef) -> Vec<ProcessRef> {
    let list = format!("/proc/{0}/task/{0}/children", mark.pid);
    // Exited, or a kernel without CONFIG_PROC_CHILDREN: `find` still finds the children.
    let children = fs::read_to_string(list).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(mark).chain(children.filter_map(ProcessRef::of)).collect()
}

/// All processes that serve `directory`.
pub(crate) fn find(directory: &Path) -> Result<Vec<ProcessRef>, ShareError> {
    let known = signatures(directory);
    let entries = fs::read_dir("/proc").map_err(ShareError::io("reading", Path::new("/proc")))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| serves(*pid, &known)).filter_map(ProcessRef::of).collect())
}

fn serves(pid: u32, known: &[String]) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|arg| known.iter().any(|k| k.as_bytes() == arg))
}

/// Kills all processes that serve `directory` and waits for their exit.
pub(crate) async fn kill(directory: &Path, deadline: Duration) -> Result<(), ShareError> {
    let end = Instant::now() + deadline;
    loop {
        // A process that is forked meanwhile is found in the next round.
        let found = find(directory)?;
        let Some(first) = found.first() else { return Ok(()) };
        if Instant::now() > end {
            return Err(ShareError::Survives(first.pid));
        }
        for mark in &found {
            mark.kill();
        }
        sleep(LOOK).await;
    }
}
