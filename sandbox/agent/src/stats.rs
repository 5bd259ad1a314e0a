//! What a container uses, and what the guest's interfaces carried.

use std::fs;
use std::path::Path;

use agent_api::agent::{Counters, StatsResponse};

use crate::cgroup::Cgroup;

const MICROSECOND: u64 = 1000;

/// The figures of `group` and of the interfaces below `net` (`/sys/class/net`).
pub(crate) fn read(group: &Cgroup, net: &Path) -> StatsResponse {
    let cpu = group.read("cpu.stat").unwrap_or_default();
    let memory = group.read("memory.stat").unwrap_or_default();
    let micros = |key| figure(&cpu, key).map(|us| us.saturating_mul(MICROSECOND));
    StatsResponse {
        cpu_total_ns: micros("usage_usec"),
        cpu_user_ns: micros("user_usec"),
        cpu_system_ns: micros("system_usec"),
        cpu_periods: figure(&cpu, "nr_periods"),
        cpu_throttled_periods: figure(&cpu, "nr_throttled"),
        cpu_throttled_ns: micros("throttled_usec"),
        memory_usage: group.number("memory.current"),
        memory_peak: group.number("memory.peak"),
        memory_limit: group.number("memory.max"),
        memory_inactive_file: figure(&memory, "inactive_file"),
        memory_anon: figure(&memory, "anon"),
        memory_file: figure(&memory, "file"),
        memory_pgfault: figure(&memory, "pgfault"),
        memory_pgmajfault: figure(&memory, "pgmajfault"),
        oom_kills: group.keyed("memory.events", "oom_kill"),
        pids: group.number("pids.current"),
        pids_limit: group.number("pids.max"),
        network: counters(net),
        ..StatsResponse::default()
    }
}

fn figure(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Every interface but the loopback, by name.
fn counters(net: &Path) -> Vec<Counters> {
    let entries = fs::read_dir(net).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo");
    names.sort();
    names.into_iter().map(|name| of_interface(net, name)).collect()
}

fn of_interface(net: &Path, name: String) -> Counters {
    let dir = net.join(&name).join("statistics");
    let read = |file: &str| {
        let text = fs::read_to_string(dir.join(file)).ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    Counters {
        rx_bytes: read("rx_bytes"),
        rx_packets: read("rx_packets"),
        rx_errors: read("rx_errors"),
        rx_dropped: read("rx_dropped"),
        tx_bytes: read("tx_bytes"),
        tx_packets: read("tx_packets"),
        tx_errors: read("tx_errors"),
        tx_dropped: read("tx_dropped"),
        name,
        ..Counters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_without_the_loopback() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["lo", "eth0"] {
            fs::create_dir_all(dir.path().join(name).join("statistics")).unwrap();
        }
        fs::write(dir.path().join("eth0/statistics/rx_bytes"), "42\n").unwrap();
        let found = counters(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].rx_bytes, found[0].tx_bytes), ("eth0", 42, 0));
    }

    #[test]
    fn figures_by_their_whole_key() {
        assert_eq!(figure("inactive_file_x 1\ninactive_file 5\n", "inactive_file"), Some(5));
        assert_eq!(figure("file 5\n", "anon"), None);
    }
}
