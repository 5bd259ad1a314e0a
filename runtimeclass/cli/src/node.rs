//! Facts of this node.

use std::fs;
use std::path::{Path, PathBuf};

use crate::host::HostError;
use crate::pod::NodeFacts;

/// Reads what the conversion of Pods must know.
pub(crate) fn facts(seccomp_root: PathBuf) -> Result<NodeFacts, HostError> {
    let name = read("/proc/sys/kernel/hostname")?.trim().to_owned();
    let memory = total_memory(&read("/proc/meminfo")?);
    // Without the file there are no servers to inherit.
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    Ok(NodeFacts { name, memory, resolv_conf, seccomp_root })
}

/// A new uid for a Pod.
pub(crate) fn new_uid() -> Result<String, HostError> {
    Ok(read("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// The node's own `/etc/hosts`.
pub(crate) fn hosts() -> Result<String, HostError> {
    read("/etc/hosts")
}

fn read(path: &str) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(HostError::at("read", Path::new(path)))
}

fn total_memory(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(total_memory("MemTotal:       16 kB\nMemFree: 1 kB\n"), 16_384);
        assert!(facts(PathBuf::new()).unwrap().memory > 0);
    }

    #[test]
    fn uids_differ() {
        assert_ne!(new_uid().unwrap(), new_uid().unwrap());
    }
}
