//! Facts of this node.

use std::fs;
use std::path::{Path, PathBuf};

use crate::node_error::NodeError;

/// What the description of Pods depends on.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The node's name, which is its hostname.
    pub name: String,
    /// The node's memory in bytes, from which OOM scores are computed.
    pub memory: i64,
    /// The text of the node's `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The directory that localhost seccomp profiles are relative to.
    pub seccomp_root: PathBuf,
}

/// Reads this node's facts.
///
/// # Errors
///
/// [`NodeError`] names the file in /proc.
pub fn facts(seccomp_root: PathBuf) -> Result<NodeFacts, NodeError> {
    let name = read("/proc/sys/kernel/hostname")?.trim().to_owned();
    let memory = total_memory(&read("/proc/meminfo")?);
    // Without the file there are no servers to inherit.
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    Ok(NodeFacts { name, memory, resolv_conf, seccomp_root })
}

/// A new uid for a Pod.
pub(crate) fn new_uid() -> Result<String, NodeError> {
    Ok(read("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// The node's own `/etc/hosts`.
pub(crate) fn hosts() -> Result<String, NodeError> {
    read("/etc/hosts")
}

fn read(path: &str) -> Result<String, NodeError> {
    fs::read_to_string(path).map_err(NodeError::at("read", Path::new(path)))
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
