//! Statistics of a container and of the guest's network interfaces.

use std::fs;
use std::path::Path;

use agent_api::agent::{Counters, StatsResponse};

use crate::cgroup::{Cgroup, keyed};

const MICROSECOND: u64 = 1000;

/// Reads the statistics of `cgroup` and of the interfaces below `net` (`/sys/class/net`).
pub(crate) fn read(cgroup: &Cgroup, net: &Path) -> StatsResponse {
    let cpu = cgroup.read("cpu.stat").unwrap_or_default();
    let memory = cgroup.read("memory.stat").unwrap_or_default();
    let micros = |key| keyed(&cpu, key).map(|us| us.saturating_mul(MICROSECOND));
    StatsResponse {
        cpu_total_ns: micros("usage_usec"),
        cpu_user_ns: micros("user_usec"),
        cpu_system_ns: micros("system_usec"),
        cpu_periods: keyed(&cpu, "nr_periods"),
        cpu_throttled_periods: keyed(&cpu, "nr_throttled"),
        cpu_throttled_ns: micros("throttled_usec"),
        memory_usage: cgroup.number("memory.current"),
        memory_peak: cgroup.number("memory.peak"),
        memory_limit: cgroup.number("memory.max"),
        memory_inactive_file: keyed(&memory, "inactive_file"),
        memory_anon: keyed(&memory, "anon"),
        memory_file: keyed(&memory, "file"),
        memory_pgfault: keyed(&memory, "pgfault"),
        memory_pgmajfault: keyed(&memory, "pgmajfault"),
        oom_kills: cgroup.keyed("memory.events", "oom_kill"),
        pids: cgroup.number("pids.current"),
        pids_limit: cgroup.number("pids.max"),
        network: counters(net),
        ..StatsResponse::default()
    }
}

/// The counters of all interfaces except the loopback, ordered by name.
fn counters(net: &Path) -> Vec<Counters> {
    let entries = fs::read_dir(net).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo");
    names.sort();
    names.into_iter().map(|name| interface_counters(net, name)).collect()
}

fn interface_counters(net: &Path, name: String) -> Counters {
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
    fn the_loopback_is_not_counted() {
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
    fn times_are_nanoseconds_and_missing_files_no_figures() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cpu.stat"), "usage_usec 7\nuser_usec 3\n").unwrap();
        fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        let stats = read(&Cgroup::at(dir.path()), Path::new("/absent"));
        assert_eq!((stats.cpu_total_ns, stats.cpu_user_ns), (Some(7000), Some(3000)));
        assert_eq!((stats.memory_limit, stats.memory_usage), (None, None));
        assert!(stats.network.is_empty());
    }
}
