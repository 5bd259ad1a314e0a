//! Triggers the OOM killer in a container that is stuck at its memory limit without it.
//!
//! A container whose memory is all anonymous, except for its programs' code, can stall there: the
//! kernel drops the code's pages, the programs need them at once and have them read again from the
//! host. Since each drop counts as progress, the kernel never calls the OOM killer (reclaim that
//! makes progress is retried without limit, mm/memcontrol.c). On the host such code is charged to
//! the cgroup that read it first; in a guest that is the container itself.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use agent_system::{blocking, log_error};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroup::{Cgroup, keyed};
use crate::error::{Doing, Result};

/// The pressure trigger (Documentation/accounting/psi.rst): all tasks of the container were stalled
/// on memory for this long in a window, both in microseconds. A tenth, because a slow CPU spends
/// most of the window on the faults themselves.
const TRIGGER: &str = "full 100000 1000000\0";

/// Consecutive windows in which the container is stuck until the OOM killer is triggered.
const WINDOWS: u32 = 5;

/// In a stuck window the droppable pages are read again at least this many times over.
const READ_AGAIN: u64 = 4;

/// Page size in bytes.
const PAGE: u64 = 4096;

/// The trigger fires at most once a window; after a longer gap the container has recovered.
const GAP: Duration = Duration::from_millis(2500);

/// A watched container, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches a container's cgroup until it is removed. On a kernel without pressure stall
/// information this logs an error and watches nothing.
pub(crate) fn watch(cgroup: Cgroup) -> Watch {
    Watch(tokio::spawn(async move {
        if let Err(error) = follow(&cgroup).await {
            log_error(&format!("a container's memory pressure is not watched: {error}"));
        }
    }))
}

async fn follow(cgroup: &Cgroup) -> Result<()> {
    let pressure = open_trigger(cgroup)?;
    let mut windows = 0;
    let mut last: Option<(Instant, Memory)> = None;
    loop {
        let ready = pressure.ready(Interest::PRIORITY).await;
        ready.doing(|| "waiting for memory pressure".into())?.clear_ready();
        let Some(memory) = Memory::read(cgroup) else { return Ok(()) };
        let before = last.replace((Instant::now(), memory));
        windows = match before {
            Some((then, before)) if then.elapsed() <= GAP && memory.is_stuck(&before) => {
                windows + 1
            }
            _ => 0,
        };
        if windows >= WINDOWS {
            windows = 0;
            let cgroup = cgroup.clone();
            let lowered = memory.lowered();
            blocking(move || trigger_oom(&cgroup, lowered)).await?;
        }
    }
}

fn open_trigger(cgroup: &Cgroup) -> Result<AsyncFd<File>> {
    let path = cgroup.file("memory.pressure");
    let doing = || format!("setting {TRIGGER:?} on {}", path.display());
    let mut file = File::options().read(true).write(true).open(&path).doing(doing)?;
    // The trigger lives for as long as the file is open.
    file.write_all(TRIGGER.as_bytes()).doing(doing)?;
    // SAFETY: `File` owns its descriptor, so it stays open and the same until it is dropped.
    let polled = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    polled.doing(doing)
}

/// Lowers the limit to `lowered` bytes, at which the kernel kills until the container fits, and
/// restores it unless it was changed meanwhile.
fn trigger_oom(cgroup: &Cgroup, lowered: u64) -> Result<()> {
    let Some(limit) = cgroup.number("memory.max") else { return Ok(()) };
    let set = |bytes: u64| cgroup.write("memory.max", &bytes.to_string());
    log_error(&format!("a container is stuck at its memory limit of {limit} bytes"));
    set(lowered)?;
    if cgroup.number("memory.max") == Some(lowered) { set(limit) } else { Ok(()) }
}

/// A container's memory use, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    limit: u64,
    used: u64,
    /// What the kernel can drop: files' pages and its own caches.
    droppable: u64,
    /// Files' pages that were dropped and read again, since the cgroup's creation.
    read_again: u64,
}

impl Memory {
    /// `None` when the cgroup is removed.
    fn read(cgroup: &Cgroup) -> Option<Self> {
        // A container without a limit is watched as well: it may get one later.
        let limit = match cgroup.read("memory.max")?.trim() {
            "max" => u64::MAX,
            number => number.parse().ok()?,
        };
        let stat = cgroup.read("memory.stat")?;
        let of = |key| keyed(&stat, key).unwrap_or(0);
        let droppable = of("file").saturating_sub(of("shmem")) + of("slab_reclaimable");
        let read_again = of("workingset_refault_file") * PAGE;
        let used = cgroup.number("memory.current")?;
        Some(Self { limit, used, droppable, read_again })
    }

    /// Whether it is at its limit with little that can be dropped, all of which was dropped and
    /// read again repeatedly since `before`, a window ago.
    fn is_stuck(&self, before: &Self) -> bool {
        let at_limit = self.used >= self.limit - self.limit / 32;
        let read_again = self.read_again.saturating_sub(before.read_again);
        at_limit && self.droppable <= self.limit / 8 && read_again >= self.droppable * READ_AGAIN
    }

    /// A limit below the memory that cannot be dropped, in whole pages.
    fn lowered(&self) -> u64 {
        self.used.saturating_sub(self.droppable) / 4 * 3 / PAGE * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn only_a_container_full_of_its_own_memory_is_stuck() {
        let before = Memory { limit: 64 * MIB, used: 64 * MIB, droppable: 2 * MIB, read_again: 0 };
        let stuck = Memory { read_again: 24 * MIB, ..before };
        assert!(stuck.is_stuck(&before));
        assert!(!stuck.is_stuck(&Memory { read_again: 20 * MIB, ..before }), "it makes progress");
        assert!(!Memory { droppable: 30 * MIB, ..stuck }.is_stuck(&before), "it reads files");
        assert!(!Memory { used: 40 * MIB, ..stuck }.is_stuck(&before), "it has room");
        assert!(!Memory { limit: u64::MAX, ..stuck }.is_stuck(&before), "it has no limit");
        assert!(stuck.lowered() < stuck.used - stuck.droppable);
        assert_eq!(stuck.lowered() % 4096, 0);
    }

    #[test]
    fn memory_use_is_read_from_the_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let cgroup = Cgroup::at(dir.path());
        assert!(Memory::read(&cgroup).is_none(), "it is removed");
        write("memory.max", "67108864\n");
        write("memory.current", "67000000\n");
        write(
            "memory.stat",
            "anon 60000000\nfile 3000000\nshmem 1000000\nslab_reclaimable 500000\n\
             workingset_refault_file 10000\n",
        );
        let memory = Memory::read(&cgroup).unwrap();
        assert_eq!((memory.used, memory.droppable), (67_000_000, 2_500_000));
        let before = Memory { read_again: 0, ..memory };
        assert!(memory.is_stuck(&before));
        write("memory.max", "max\n");
        assert!(!Memory::read(&cgroup).unwrap().is_stuck(&before));
    }
}
