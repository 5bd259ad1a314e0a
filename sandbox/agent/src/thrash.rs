//! Brings the out-of-memory killer to a container that has reached its memory limit without it.
//!
//! A container whose memory is all its programs' own, but for the pages of their code, can be
//! stuck there: the kernel drops the code's pages, the programs need them at once and have them
//! read again from the host, and since every drop counts as a success the killer is never called
//! (reclaim that succeeds is tried again without end, mm/memcontrol.c). On the host such code is
//! charged to whoever read it first; in a guest that is the container itself.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroup::Cgroup;
use crate::console;
use crate::container::blocking;
use crate::error::{Doing, Result};

/// When the kernel is to tell: every task of the container stood still for memory for so long (in
/// microseconds) in each window (Documentation/accounting/psi.rst). No more than a tenth, for a
/// slow processor is busy with the faults themselves for most of the time.
const TRIGGER: &str = "full 100000 1000000\0";

/// Windows in a row, in each of which the container is stuck, until something is killed.
const WINDOWS: u32 = 5;

/// How many times over what can be dropped is read again in a window in which nothing else is done.
const READ_AGAIN: u64 = 4;

/// Memory is counted in these.
const PAGE: u64 = 4096;

/// The kernel tells at most once a window; a gap of more than that is a recovery.
const GAP: Duration = Duration::from_millis(2500);

/// A watched container. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches a container's group until it goes. A kernel without pressure information watches
/// nothing, and says so.
pub(crate) fn watch(group: Cgroup) -> Watch {
    Watch(tokio::spawn(async move {
        if let Err(error) = follow(&group).await {
            console::error(&format!("its memory's pressure is not watched: {error}"));
        }
    }))
}

async fn follow(group: &Cgroup) -> Result<()> {
    let pressure = pressure(group)?;
    let mut windows = 0;
    let mut last: Option<(Instant, Memory)> = None;
    loop {
        let told = pressure.ready(Interest::PRIORITY).await;
        told.doing(|| "awaiting pressure".into())?.clear_ready();
        let Some(memory) = Memory::read(group) else { return Ok(()) };
        let before = last.replace((Instant::now(), memory));
        windows = match before {
            Some((then, before)) if then.elapsed() <= GAP && memory.is_stuck(&before) => {
                windows + 1
            }
            _ => 0,
        };
        if windows >= WINDOWS {
            windows = 0;
            let (group, lowered) = (group.clone(), memory.lowered());
            blocking(move || squeeze(&group, lowered)).await?;
        }
    }
}

fn pressure(group: &Cgroup) -> Result<AsyncFd<File>> {
    let path = group.file("memory.pressure");
    let doing = || format!("setting {TRIGGER:?} on {}", path.display());
    let mut file = File::options().read(true).write(true).open(&path).doing(doing)?;
    // The trigger lives for as long as the file is open.
    file.write_all(TRIGGER.as_bytes()).doing(doing)?;
    // SAFETY: `File` owns its descriptor, so it stays open and the same until it is dropped.
    let polled = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    polled.doing(doing)
}

/// Has the kernel kill until the container fits into `lowered` bytes, then gives it its limit
/// back, unless it got another one meanwhile.
fn squeeze(group: &Cgroup, lowered: u64) -> Result<()> {
    let Some(limit) = group.number("memory.max") else { return Ok(()) };
    let set = |bytes: u64| group.set("memory.max", &bytes.to_string());
    console::error(&format!("a container is stuck at its memory limit of {limit} bytes"));
    set(lowered)?;
    if group.number("memory.max") == Some(lowered) { set(limit) } else { Ok(()) }
}

/// What a container's memory is used for, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    limit: u64,
    used: u64,
    /// What the kernel can drop: files' pages and caches of its own.
    droppable: u64,
    /// Files' pages that were dropped and read again, ever since.
    read_again: u64,
}

impl Memory {
    /// `None` when it has no limit, or is gone.
    fn read(group: &Cgroup) -> Option<Self> {
        // A group without a limit has a trigger all the same: one may be set later.
        let limit = match group.read("memory.max")?.trim() {
            "max" => u64::MAX,
            number => number.parse().ok()?,
        };
        let stat = group.read("memory.stat")?;
        let of = |key| crate::cgroup::keyed(&stat, key).unwrap_or(0);
        let droppable = of("file").saturating_sub(of("shmem")) + of("slab_reclaimable");
        let read_again = of("workingset_refault_file") * PAGE;
        Some(Self { limit, used: group.number("memory.current")?, droppable, read_again })
    }

    /// At the limit, with next to nothing that can be dropped, and that over and over again since
    /// `before`, a window ago.
    fn is_stuck(&self, before: &Self) -> bool {
        let at_limit = self.used >= self.limit - self.limit / 32;
        let read_again = self.read_again.saturating_sub(before.read_again);
        at_limit && self.droppable <= self.limit / 8 && read_again >= self.droppable * READ_AGAIN
    }

    /// A limit below what cannot be dropped, in whole pages.
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
        assert!(!stuck.is_stuck(&Memory { read_again: 20 * MIB, ..before }), "it gets on");
        assert!(!Memory { droppable: 30 * MIB, ..stuck }.is_stuck(&before), "it reads files");
        assert!(!Memory { used: 40 * MIB, ..stuck }.is_stuck(&before), "it has room");
        assert!(!Memory { limit: u64::MAX, ..stuck }.is_stuck(&before), "it has no limit");
        assert!(stuck.lowered() < stuck.used - stuck.droppable);
        assert_eq!(stuck.lowered() % 4096, 0);
    }

    #[test]
    fn what_memory_is_used_for_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let group = Cgroup::at(dir.path());
        assert!(Memory::read(&group).is_none(), "it is gone");
        write("memory.max", "67108864\n");
        write("memory.current", "67000000\n");
        write(
            "memory.stat",
            "anon 60000000\nfile 3000000\nshmem 1000000\nslab_reclaimable 500000\n\
             workingset_refault_file 10000\n",
        );
        let memory = Memory::read(&group).unwrap();
        assert_eq!((memory.used, memory.droppable), (67_000_000, 2_500_000));
        let before = Memory { read_again: 0, ..memory };
        assert!(memory.is_stuck(&before));
        write("memory.max", "max\n");
        assert!(!Memory::read(&group).unwrap().is_stuck(&before));
    }
}
