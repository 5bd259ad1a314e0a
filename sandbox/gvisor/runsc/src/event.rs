//! What a sandbox reports of a container's use (`runsc/boot/events.go`; the same from 20240729 on).

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::Deserializer;

/// What a container uses, from the answer to `Event`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "RawEvent")]
pub struct Event {
    /// CPU time in nanoseconds by container, of those that run.
    pub cpu: HashMap<String, u64>,
    /// The container's own CPU time in nanoseconds: where 20240729 reports it when the guest has
    /// cgroups mounted, else 0.
    pub cpu_of_cgroup: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Number of processes.
    pub pids: u64,
    /// The sandbox's network interfaces.
    pub interfaces: Vec<GuestInterface>,
}

/// Counters of a network interface since the sandbox's launch.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GuestInterface {
    /// The name in the guest.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received with an error.
    pub rx_errors: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets not sent for an error.
    pub tx_errors: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawEvent {
    event: RawBody,
    #[serde(rename = "containerUsage", deserialize_with = "null_is_default")]
    cpu: HashMap<String, u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawBody {
    data: RawData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawData {
    cpu: RawCpu,
    memory: RawMemory,
    pids: RawPids,
    #[serde(deserialize_with = "null_is_default")]
    network_interfaces: Vec<GuestInterface>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawCpu {
    usage: RawCpuUsage,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawCpuUsage {
    total: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawMemory {
    usage: RawMemoryUsage,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawMemoryUsage {
    usage: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawPids {
    current: u64,
}

impl From<RawEvent> for Event {
    fn from(raw: RawEvent) -> Self {
        let RawEvent { event: RawBody { data }, cpu } = raw;
        Self {
            cpu,
            cpu_of_cgroup: data.cpu.usage.total,
            memory: data.memory.usage.usage,
            pids: data.pids.current,
            interfaces: data.network_interfaces,
        }
    }
}

/// Go writes an empty slice or map as `null`.
fn null_is_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_both_versions_answer() {
        let text = r#"{"event":{"type":"stats","id":"ct","data":{"cpu":{"usage":{}},
            "memory":{"usage":{"limit":0,"usage":4050944,"failcnt":0},"swap":{"limit":0}},
            "pids":{"current":1},"network_interfaces":[{"Name":"eth0","RxBytes":7,"RxPackets":1,
            "RxErrors":0,"RxDropped":0,"TxBytes":9,"TxPackets":1,"TxErrors":0,"TxDropped":0}]}},
            "containerUsage":{"ct":10000000,"sb":0}}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert_eq!(event.memory, 4_050_944);
        assert_eq!(event.interfaces[0].rx_bytes, 7);
        assert_eq!(event.cpu["ct"], 10_000_000);
        let idle = r#"{"event":{"data":{"pids":{},"network_interfaces":null}},
            "containerUsage":null}"#;
        let event: Event = serde_json::from_str(idle).unwrap();
        assert_eq!((event.pids, event.cpu.len()), (0, 0));
    }
}
