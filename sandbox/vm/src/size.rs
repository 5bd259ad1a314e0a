//! The size of a Pod's VM, from the Pod's limits and the handler's settings.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::LinuxResources;

use crate::config::VmConfig;

const MIB: u64 = 1 << 20;

/// Unit of memory in bytes, for booting and hotplug: the largest block of Linux's memory hotplug on
/// VMs of this size (`memory_block_size_bytes`).
const BLOCK: u64 = 128 * MIB;

/// The sum of the containers' limits that containerd puts on the sandbox
/// (`internal/cri/annotations`); absent or 0 when a container has none.
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// A container's resource limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Thousandths of a processor.
    pub(crate) millicpus: Option<u64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
}

impl Limit {
    /// The limits in `resources`.
    pub(crate) fn of(resources: Option<&LinuxResources>) -> Self {
        let cpu = resources.and_then(|all| all.cpu().as_ref());
        let quota = cpu.and_then(|cpu| cpu.quota());
        let period = cpu.and_then(|cpu| cpu.period());
        let memory = resources.and_then(|all| all.memory().as_ref()).and_then(|m| m.limit());
        Self { millicpus: millicpus(quota, period), memory: positive(memory) }
    }

    /// The limits after an update; what `resources` do not set stays.
    pub(crate) fn updated(self, resources: &LinuxResources) -> Self {
        let new = Self::of(Some(resources));
        Self { millicpus: new.millicpus.or(self.millicpus), memory: new.memory.or(self.memory) }
    }

    /// The limits of a Pod as a whole: from CRI's annotations or, without them, `resources`.
    pub(crate) fn of_pod(
        annotations: &HashMap<String, String>,
        resources: Option<&LinuxResources>,
    ) -> Self {
        let number = |key| annotations.get(key).and_then(|text| text.parse::<i64>().ok());
        if ![CPU_PERIOD, CPU_QUOTA, MEMORY].iter().any(|key| annotations.contains_key(*key)) {
            return Self::of(resources);
        }
        let period = number(CPU_PERIOD).and_then(|period| u64::try_from(period).ok());
        Self { millicpus: millicpus(number(CPU_QUOTA), period), memory: positive(number(MEMORY)) }
    }
}

fn positive(value: Option<i64>) -> Option<u64> {
    value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0)
}

fn millicpus(quota: Option<i64>, period: Option<u64>) -> Option<u64> {
    // The kernel's own default period: 100 ms.
    let period = period.filter(|period| *period > 0).unwrap_or(100_000);
    positive(quota).map(|quota| quota.saturating_mul(1000).div_ceil(period))
}

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) vcpus: u32,
    /// Bytes.
    pub(crate) memory: u64,
}

/// The size of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostSize {
    pub(crate) cpus: u32,
    /// Bytes.
    pub(crate) memory: u64,
}

impl HostSize {
    /// This host.
    pub(crate) fn read() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        Self { cpus: u32::try_from(cpus).unwrap_or(1), memory: kib.unwrap_or(0) * 1024 }
    }
}

/// The maximum size of a VM on `host`.
pub(crate) fn largest(config: &VmConfig, host: HostSize) -> Size {
    let vcpus = if config.max_vcpus == 0 { host.cpus } else { config.max_vcpus };
    let memory = match config.max_memory_mib {
        0 => host.memory,
        mib => mib * MIB,
    };
    let least = plan(config, Limit::default());
    Size {
        vcpus: vcpus.clamp(least.vcpus, 254),
        memory: (memory / BLOCK * BLOCK).max(least.memory),
    }
}

/// The size of the VM for a Pod with these limits. Without a limit a dimension has the handler's
/// default, whether or not the other one is limited.
pub(crate) fn plan(config: &VmConfig, limit: Limit) -> Size {
    let vcpus = limit.millicpus.map(|milli| milli.div_ceil(1000).clamp(1, 254));
    let memory = limit.memory.map(|bytes| bytes.saturating_add(config.memory_overhead_mib * MIB));
    let memory = memory.unwrap_or(config.memory_mib * MIB).max(config.memory_floor_mib * MIB);
    Size {
        vcpus: vcpus.and_then(|vcpus| u32::try_from(vcpus).ok()).unwrap_or(config.vcpus),
        memory: memory.div_ceil(BLOCK).saturating_mul(BLOCK),
    }
}

/// The limits of all containers in a running VM.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand(BTreeMap<String, Limit>);

impl Demand {
    /// Sets the limits of container `id`.
    pub(crate) fn set(&mut self, id: &str, limit: Limit) {
        self.0.insert(id.to_owned(), limit);
    }

    /// Removes container `id`.
    pub(crate) fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// The limits of container `id`.
    pub(crate) fn get(&self, id: &str) -> Limit {
        self.0.get(id).copied().unwrap_or_default()
    }

    /// The size that they need; at least `now`, at most `most`.
    pub(crate) fn size(&self, config: &VmConfig, now: Size, most: Size) -> Size {
        let sum = |part: fn(&Limit) -> Option<u64>| {
            let limits: Vec<u64> = self.0.values().filter_map(part).collect();
            (!limits.is_empty()).then(|| limits.into_iter().fold(0, u64::saturating_add))
        };
        let limit =
            Limit { millicpus: sum(|limit| limit.millicpus), memory: sum(|limit| limit.memory) };
        let mut size = now;
        let wanted = plan(config, limit);
        if limit.millicpus.is_some() {
            size.vcpus = wanted.vcpus.min(most.vcpus).max(now.vcpus);
        }
        if limit.memory.is_some() {
            size.memory = wanted.memory.min(most.memory).max(now.memory);
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    fn limit(millicpus: Option<u64>, mib: Option<u64>) -> Limit {
        Limit { millicpus, memory: mib.map(|mib| mib * MIB) }
    }

    #[test]
    fn a_dimension_without_a_limit_gets_the_default() {
        let config = VmConfig::default();
        let mib = |limit| {
            let size = plan(&config, limit);
            (size.vcpus, size.memory / MIB)
        };
        assert_eq!(mib(limit(None, None)), (1, 2048));
        assert_eq!(
            mib(limit(Some(2500), None)),
            (3, 2048),
            "a CPU limit does not reduce the memory"
        );
        assert_eq!(mib(limit(None, Some(64))), (1, 256), "the floor");
        assert_eq!(mib(limit(None, Some(512))), (1, 640), "limit and overhead, in blocks");
    }

    #[test]
    fn reads_cris_sum_or_the_containers_own() {
        let read = |json: &str| {
            let spec: Spec = serde_json::from_str(json).unwrap();
            let annotations = spec.annotations().clone().unwrap_or_default();
            let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
            Limit::of_pod(&annotations, resources)
        };
        let cri = r#"{"ociVersion":"1.1.0","annotations":{
            "io.kubernetes.cri.sandbox-cpu-period":"100000",
            "io.kubernetes.cri.sandbox-cpu-quota":"150000",
            "io.kubernetes.cri.sandbox-memory":"1048576"}}"#;
        assert_eq!(read(cri), limit(Some(1500), Some(1)));
        let none = r#"{"ociVersion":"1.1.0","annotations":{
            "io.kubernetes.cri.sandbox-cpu-quota":"0","io.kubernetes.cri.sandbox-memory":"0"},
            "linux":{"resources":{"memory":{"limit":5}}}}"#;
        assert_eq!(read(none), Limit::default());
        let bare = r#"{"ociVersion":"1.1.0","linux":{"resources":{
            "memory":{"limit":2097152},"cpu":{"quota":50000,"period":100000}}}}"#;
        assert_eq!(read(bare), limit(Some(500), Some(2)));
    }

    #[test]
    fn grows_with_the_sum_and_never_shrinks() {
        let config = VmConfig::default();
        let host = HostSize { cpus: 4, memory: 8 << 30 };
        let most = largest(&config, host);
        assert_eq!(most, Size { vcpus: 4, memory: 8 << 30 });
        let now = plan(&config, limit(Some(1000), Some(512)));
        let mut demand = Demand::default();
        demand.set("a", limit(Some(1000), Some(512)));
        assert_eq!(demand.size(&config, now, most), now);
        demand.set("b", limit(Some(1000), Some(512)));
        let grown = demand.size(&config, now, most);
        assert_eq!((grown.vcpus, grown.memory / MIB), (2, 1152));
        demand.remove("b");
        assert_eq!(demand.size(&config, grown, most), grown);
        demand.set("a", limit(Some(64_000), Some(1 << 20)));
        assert_eq!(demand.size(&config, grown, most), most);
    }
}
