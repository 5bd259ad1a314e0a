//! The memory of an idle Pod of one container: of every process, by its role.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::traces;
use crate::client::pod::Pod;
use crate::client::stage::Stage;

/// After this time a started Pod is idle.
const SETTLE: Duration = Duration::from_secs(3);

/// The memory of all processes of one role, in KiB.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// How many processes.
    pub(super) processes: u32,
    /// Resident, each page divided by the number of processes that map it.
    pub(super) pss: u64,
    /// Resident and mapped by no other process.
    pub(super) private: u64,
}

/// The roles of a Pod's processes, in the order of a report.
pub(super) const PARTS: [&str; 10] = [
    "shim",
    "helper",
    "sandbox",
    "gofer",
    "stub",
    "VMM",
    "virtiofsd",
    "vsock device",
    "guest memory touched",
    "workload",
];

/// The memory of an idle Pod under the stage's handler, by role.
pub(super) fn measure(stage: &Stage) -> Result<BTreeMap<&'static str, Memory>> {
    let before = traces::processes(stage.node.place());
    let pod = Pod::run(stage)?;
    let container = pod.shell("echo ready; exec sleep 100000")?;
    container.logged("ready")?;
    std::thread::sleep(SETTLE);
    let mut parts: BTreeMap<&'static str, Memory> = BTreeMap::new();
    for (pid, line) in traces::processes(stage.node.place()) {
        if before.contains_key(&pid) || is_kernels(pid)? {
            continue;
        }
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("{path} of {line:?}"))?;
        let (pss, private) = rollup(&text).with_context(|| format!("{path}: {text:?}"))?;
        let words = line.split_once(' ').map_or("", |(_, words)| words);
        let memory = parts.entry(part(words)).or_default();
        memory.processes += 1;
        memory.pss += pss;
        memory.private += private;
        if part(words) == "VMM" {
            let maps = format!("/proc/{pid}/smaps");
            let touched = guest_memory(&fs::read_to_string(&maps).context(maps)?);
            let guest = parts.entry("guest memory touched").or_default();
            *guest = Memory { processes: 0, pss: touched, private: touched };
        }
    }
    ensure!(parts.contains_key("shim"), "no shim among the Pod's processes: {parts:?}");
    Ok(parts)
}

/// Whether it is a kernel thread, which has no memory of its own: KVM puts its workers into the
/// VMM's cgroup.
fn is_kernels(pid: i32) -> Result<bool> {
    let statm = format!("/proc/{pid}/statm");
    let text = fs::read_to_string(&statm).context(statm)?;
    Ok(text.split_whitespace().next() == Some("0"))
}

/// The role of a process with this command line.
fn part(line: &str) -> &'static str {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let verb = |wanted: &str| line.split(' ').any(|word| word == wanted);
    match program {
        // Processes of systrap have neither the sandbox's memory nor its command line.
        "" => "stub",
        _ if program.starts_with("containerd-shim") => "shim",
        _ if program.starts_with("runsc") && verb("boot") => "sandbox",
        _ if program.starts_with("runsc") && verb("gofer") => "gofer",
        _ if program.starts_with("runsc") || program == "runc" => "helper",
        _ if program.starts_with("qemu-system") || program == "cloud-hypervisor" => "VMM",
        "virtiofsd" => "virtiofsd",
        "vhost-device-vsock" => "vsock device",
        _ => "workload",
    }
}

/// The resident memory of the guest in the `smaps` of a VMM, in KiB. virtiofsd maps the same memory,
/// so that the PSS of each has a part of it.
fn guest_memory(smaps: &str) -> u64 {
    let mut shared = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if shared => {
                sum += words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
            }
            Some(first) if !first.ends_with(':') => shared = line.contains("/memfd:"),
            _ => {}
        }
    }
    sum
}

/// PSS and private memory of a `smaps_rollup`, in KiB.
fn rollup(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((field("Pss")?, field("Private_Clean")? + field("Private_Dirty")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_rollup() {
        let text = "5581-7ffd ---p 00000000 00:00 0    [rollup]\nRss:      4068 kB\n\
            Pss:                1234 kB\nPss_Dirty:           608 kB\nShared_Clean:       2000 kB\n\
            Private_Clean:       100 kB\nPrivate_Dirty:       608 kB\n";
        assert_eq!(rollup(text), Some((1234, 708)));
        assert_eq!(rollup("Pss: 1 kB\n"), None);
        assert_eq!(rollup(""), None);
    }

    #[test]
    fn the_kernels_threads_are_told_from_processes() {
        assert!(!is_kernels(i32::try_from(std::process::id()).unwrap()).unwrap());
        let threads = fs::read_to_string("/proc/2/comm").unwrap_or_default();
        // In a container's PID namespace there are none.
        if threads.trim() == "kthreadd" {
            assert!(is_kernels(2).unwrap());
        }
        is_kernels(i32::MAX).unwrap_err();
    }

    #[test]
    fn guest_memory_is_what_is_shared() {
        let smaps = "7f00-7f10 rw-s 00000000 00:01 12  /memfd:ram (deleted)\nSize: 99 kB\n\
            Rss:   2048 kB\nPss: 1024 kB\n7f20-7f30 rw-p 00000000 00:00 0 [heap]\nRss: 7 kB\n";
        assert_eq!(guest_memory(smaps), 2048);
    }

    #[test]
    fn tells_the_parts() {
        let lines = [
            ("/run/bh-x/21/bin/containerd-shim-bulkhead-v2 -namespace k8s.io -id x", "shim"),
            ("runsc-sandbox --root=/r boot --bundle=/b x", "sandbox"),
            ("runsc-gofer --root=/r gofer --bundle /b", "gofer"),
            ("/usr/bin/runsc --root=/r wait x", "helper"),
            ("/usr/bin/qemu-system-x86_64 -nodefaults -S", "VMM"),
            ("/usr/lib/qemu/virtiofsd -f --fd=3 -o source=/run/x/share", "virtiofsd"),
            ("/busybox sleep 2147483647", "workload"),
            ("", "stub"),
        ];
        for (line, expected) in lines {
            assert_eq!(part(line), expected, "{line}");
            assert!(PARTS.contains(&expected));
        }
    }
}
