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
/// microseconds) in each window (Documentation/accounting/psi.rst).
const TRIGGER: &str = "full 500000 1000000\0";

/// Such windows in a row until something is killed.
const WINDOWS: u32 = 5;

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
    let (mut windows, mut last) = (0, Instant::now());
    loop {
        let told = pressure.ready(Interest::PRIORITY).await;
        told.doing(|| "awaiting pressure".into())?.clear_ready();
        if last.elapsed() > GAP {
            windows = 0;
        }
        last = Instant::now();
        let Some(memory) = Memory::read(group) else { return Ok(()) };
        windows = if memory.is_stuck() { windows + 1 } else { 0 };
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
        Some(Self { limit, used: group.number("memory.current")?, droppable })
    }

    /// At the limit, with next to nothing that can be dropped.
    fn is_stuck(&self) -> bool {
        let at_limit = self.used >= self.limit - self.limit / 32;
        at_limit && self.droppable <= self.limit / 8
    }

    /// A limit below what cannot be dropped, in whole pages.
    fn lowered(&self) -> u64 {
        const PAGE: u64 = 4096;
        self.used.saturating_sub(self.droppable) / 4 * 3 / PAGE * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn only_a_container_full_of_its_own_memory_is_stuck() {
        let stuck = Memory { limit: 64 * MIB, used: 64 * MIB, droppable: 2 * MIB };
        assert!(stuck.is_stuck());
        assert!(!Memory { droppable: 30 * MIB, ..stuck }.is_stuck(), "it reads files");
        assert!(!Memory { used: 40 * MIB, ..stuck }.is_stuck(), "it has room");
        assert!(!Memory { limit: u64::MAX, ..stuck }.is_stuck(), "it has no limit");
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
            "anon 60000000\nfile 3000000\nshmem 1000000\nslab_reclaimable 500000\n",
        );
        let memory = Memory::read(&group).unwrap();
        assert_eq!((memory.used, memory.droppable), (67_000_000, 2_500_000));
        assert!(memory.is_stuck());
        write("memory.max", "max\n");
        assert!(!Memory::read(&group).unwrap().is_stuck());
    }
}
