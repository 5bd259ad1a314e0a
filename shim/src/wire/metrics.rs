//! [`Stats`] as the metrics message that containerd reads: CRI takes the one of the host's cgroup
//! version.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use sandbox_core::{Error, Interface, Kind, Result, Stats};
use sandbox_host::cgroup::Version;

/// Encodes `stats` for a host of this cgroup version.
pub(crate) fn encode(stats: &Stats, version: Version) -> Result<Any> {
    let (type_url, bytes) = match version {
        Version::V1 => ("io.containerd.cgroups.v1.Metrics", to_v1(stats).write_to_bytes()),
        Version::V2 => ("io.containerd.cgroups.v2.Metrics", to_v2(stats).write_to_bytes()),
    };
    let value =
        bytes.map_err(|e| Error::new(Kind::Internal, format!("encoding the metrics: {e}")))?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}

/// No limit, as cgroup v1 shows it.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

fn to_v1(stats: &Stats) -> v1::Metrics {
    let or_zero = |figure: Option<u64>| figure.unwrap_or_default();
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: or_zero(stats.pids),
            limit: or_zero(stats.pids_limit),
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: or_zero(stats.cpu_total_ns),
                kernel: or_zero(stats.cpu_system_ns),
                user: or_zero(stats.cpu_user_ns),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: or_zero(stats.cpu_periods),
                throttled_periods: or_zero(stats.cpu_throttled_periods),
                throttled_time: or_zero(stats.cpu_throttled_ns),
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(memory_v1(stats)),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: or_zero(stats.oom_kills),
            ..Default::default()
        }),
        network: stats.network.iter().map(network_v1).collect(),
        // nerdctl reads its lists without looking whether it is there.
        blkio: MessageField::some(v1::BlkIOStat::default()),
        ..Default::default()
    }
}

fn memory_v1(stats: &Stats) -> v1::MemoryStat {
    let or_zero = |figure: Option<u64>| figure.unwrap_or_default();
    let limit = stats.memory_limit.unwrap_or(UNLIMITED);
    v1::MemoryStat {
        cache: or_zero(stats.memory_file),
        rss: or_zero(stats.memory_anon),
        pg_fault: or_zero(stats.memory_pgfault),
        pg_maj_fault: or_zero(stats.memory_pgmajfault),
        inactive_file: or_zero(stats.memory_inactive_file),
        hierarchical_memory_limit: limit,
        total_cache: or_zero(stats.memory_file),
        total_rss: or_zero(stats.memory_anon),
        total_pg_fault: or_zero(stats.memory_pgfault),
        total_pg_maj_fault: or_zero(stats.memory_pgmajfault),
        total_inactive_file: or_zero(stats.memory_inactive_file),
        usage: MessageField::some(v1::MemoryEntry {
            limit,
            usage: or_zero(stats.memory_usage),
            max: or_zero(stats.memory_peak),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn network_v1(interface: &Interface) -> v1::NetworkStat {
    v1::NetworkStat {
        name: interface.name.clone(),
        rx_bytes: interface.rx_bytes,
        rx_packets: interface.rx_packets,
        rx_errors: interface.rx_errors,
        rx_dropped: interface.rx_dropped,
        tx_bytes: interface.tx_bytes,
        tx_packets: interface.tx_packets,
        tx_errors: interface.tx_errors,
        tx_dropped: interface.tx_dropped,
        ..Default::default()
    }
}

fn to_v2(stats: &Stats) -> v2::Metrics {
    let or_zero = |figure: Option<u64>| figure.unwrap_or_default();
    let microseconds = |nanoseconds: Option<u64>| or_zero(nanoseconds) / 1000;
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: or_zero(stats.pids),
            limit: or_zero(stats.pids_limit),
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: microseconds(stats.cpu_total_ns),
            user_usec: microseconds(stats.cpu_user_ns),
            system_usec: microseconds(stats.cpu_system_ns),
            nr_periods: or_zero(stats.cpu_periods),
            nr_throttled: or_zero(stats.cpu_throttled_periods),
            throttled_usec: microseconds(stats.cpu_throttled_ns),
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: or_zero(stats.memory_anon),
            file: or_zero(stats.memory_file),
            inactive_file: or_zero(stats.memory_inactive_file),
            pgfault: or_zero(stats.memory_pgfault),
            pgmajfault: or_zero(stats.memory_pgmajfault),
            usage: or_zero(stats.memory_usage),
            usage_limit: stats.memory_limit.unwrap_or(u64::MAX),
            max_usage: or_zero(stats.memory_peak),
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents {
            oom_kill: or_zero(stats.oom_kills),
            ..Default::default()
        }),
        network: stats.network.iter().map(network_v2).collect(),
        ..Default::default()
    }
}

fn network_v2(interface: &Interface) -> v2::NetworkStat {
    v2::NetworkStat {
        name: interface.name.clone(),
        rx_bytes: interface.rx_bytes,
        rx_packets: interface.rx_packets,
        rx_errors: interface.rx_errors,
        rx_dropped: interface.rx_dropped,
        tx_bytes: interface.tx_bytes,
        tx_packets: interface.tx_packets,
        tx_errors: interface.tx_errors,
        tx_dropped: interface.tx_dropped,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Stats {
        Stats {
            cpu_total_ns: Some(5_000_000),
            memory_usage: Some(100),
            memory_inactive_file: Some(30),
            ..Stats::default()
        }
    }

    #[test]
    fn each_version_has_its_message_and_units() {
        let any = encode(&sample(), Version::V1).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 5_000_000);
        assert_eq!((metrics.memory.usage.usage, metrics.memory.total_inactive_file), (100, 30));
        assert_eq!(metrics.memory.usage.limit, UNLIMITED);
        assert!(metrics.blkio.is_some(), "nerdctl reads it without a look whether it is there");

        let any = encode(&sample(), Version::V2).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage_usec, 5_000);
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (100, u64::MAX));
    }
}
