//! Hot-plugged CPUs and memory.

use std::fs;
use std::path::{Path, PathBuf};

use agent_api::agent::OnlineResponse;

use crate::error::{Doing, Result};
use crate::uevent;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// Size in bytes of a block of hot-pluggable memory; 0 where the kernel has no memory hotplug.
pub fn memory_block() -> u64 {
    let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).unwrap_or_default();
    u64::from_str_radix(text.trim(), 16).unwrap_or(0)
}

/// Has the kernel bring hot-plugged memory online by itself, where it supports that.
pub(crate) fn online_new_memory() {
    let _ = fs::write(Path::new(MEMORY).join("auto_online_blocks"), "online");
}

/// Brings hot-plugged CPUs and memory online, until `vcpus` CPUs are. Blocks.
///
/// # Errors
///
/// `DeadlineExceeded` if fewer CPUs appear; what the kernel refuses to bring online.
pub fn online(vcpus: u32) -> Result<OnlineResponse> {
    let online = uevent::await_device(&format!("processor {vcpus}"), || {
        bring_online(CPUS, "cpu", "online", "1")?;
        // The boot CPU may have no `online` file.
        let online = count(CPUS, "cpu", |dir| {
            !dir.join("online").exists() || contains(&dir.join("online"), "1")
        });
        Ok(Some(online).filter(|online| *online >= vcpus))
    })?;
    Ok(OnlineResponse { vcpus: online, memory: online_memory()?, ..OnlineResponse::default() })
}

/// Brings all memory blocks online and returns their total size in bytes.
fn online_memory() -> Result<u64> {
    bring_online(MEMORY, "memory", "state", "online")?;
    let online = count(MEMORY, "memory", |dir| contains(&dir.join("state"), "online"));
    Ok(memory_block() * u64::from(online))
}

/// Directories below `root` whose name is `prefix` and a number.
fn numbered(root: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let numbered = entries.filter(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    });
    numbered.map(|entry| entry.path()).collect()
}

fn count(root: &str, prefix: &str, test: impl Fn(&Path) -> bool) -> u32 {
    let counted = numbered(root, prefix).iter().filter(|dir| test(dir)).count();
    u32::try_from(counted).unwrap_or(u32::MAX)
}

fn contains(file: &Path, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == value)
}

fn bring_online(root: &str, prefix: &str, file: &str, value: &str) -> Result<()> {
    for dir in numbered(root, prefix) {
        let switch = dir.join(file);
        if switch.exists() && !contains(&switch, value) {
            fs::write(&switch, value)
                .doing(|| format!("writing {value} to {}", switch.display()))?;
        }
    }
    Ok(())
}
