//! Usage of a group.

use std::fs;
use std::path::Path;

use super::group::{Cgroup, Version};
use crate::stats::Stats;

/// v1 shows "no limit" as the largest multiple of the page size that fits its counter.
const UNLIMITED_V1: u64 = 0x7fff_ffff_ffff_f000;

/// A file with one number; `None` if it is absent or contains `max`.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A file of `key value` lines, read once.
struct Table(String);

impl Table {
    fn read(file: &Path) -> Self {
        Self(fs::read_to_string(file).unwrap_or_default())
    }

    fn get(&self, key: &str) -> Option<u64> {
        self.0.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then(|| value.trim().parse().ok())?
        })
    }
}

impl Cgroup {
    /// Current usage. Figures that the kernel does not provide are `None`.
    pub fn stats(&self) -> Stats {
        match self.version {
            Version::V1 => self.stats_v1(),
            Version::V2 => self.stats_v2(),
        }
    }

    /// How many processes of the group the out-of-memory killer has killed.
    pub fn oom_kills(&self) -> Option<u64> {
        let directory = self.directory("memory");
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        Table::read(&directory.join(file)).get("oom_kill")
    }

    fn stats_v1(&self) -> Stats {
        let memory = self.directory("memory");
        let cpu = self.directory("cpu");
        let cpuacct = self.directory("cpuacct");
        let pids = self.directory("pids");
        let stat = Table::read(&memory.join("memory.stat"));
        let throttling = Table::read(&cpu.join("cpu.stat"));
        Stats {
            cpu_total_ns: number(&cpuacct.join("cpuacct.usage")),
            cpu_user_ns: number(&cpuacct.join("cpuacct.usage_user")),
            cpu_system_ns: number(&cpuacct.join("cpuacct.usage_sys")),
            cpu_periods: throttling.get("nr_periods"),
            cpu_throttled_periods: throttling.get("nr_throttled"),
            cpu_throttled_ns: throttling.get("throttled_time"),
            memory_usage: number(&memory.join("memory.usage_in_bytes")),
            memory_peak: number(&memory.join("memory.max_usage_in_bytes")),
            memory_limit: number(&memory.join("memory.limit_in_bytes"))
                .filter(|limit| *limit < UNLIMITED_V1),
            memory_inactive_file: stat.get("total_inactive_file"),
            memory_anon: stat.get("total_rss"),
            memory_file: stat.get("total_cache"),
            memory_pgfault: stat.get("total_pgfault"),
            memory_pgmajfault: stat.get("total_pgmajfault"),
            oom_kills: self.oom_kills(),
            pids: number(&pids.join("pids.current")),
            pids_limit: number(&pids.join("pids.max")),
            network: Vec::new(),
        }
    }

    fn stats_v2(&self) -> Stats {
        let directory = self.directory("memory");
        let memory = Table::read(&directory.join("memory.stat"));
        let cpu = Table::read(&directory.join("cpu.stat"));
        let nanoseconds = |key| cpu.get(key).map(|microseconds| microseconds * 1000);
        Stats {
            cpu_total_ns: nanoseconds("usage_usec"),
            cpu_user_ns: nanoseconds("user_usec"),
            cpu_system_ns: nanoseconds("system_usec"),
            cpu_periods: cpu.get("nr_periods"),
            cpu_throttled_periods: cpu.get("nr_throttled"),
            cpu_throttled_ns: nanoseconds("throttled_usec"),
            memory_usage: number(&directory.join("memory.current")),
            memory_peak: number(&directory.join("memory.peak")),
            memory_limit: number(&directory.join("memory.max")),
            memory_inactive_file: memory.get("inactive_file"),
            memory_anon: memory.get("anon"),
            memory_file: memory.get("file"),
            memory_pgfault: memory.get("pgfault"),
            memory_pgmajfault: memory.get("pgmajfault"),
            oom_kills: self.oom_kills(),
            pids: number(&directory.join("pids.current")),
            pids_limit: number(&directory.join("pids.max")),
            network: Vec::new(),
        }
    }
}
