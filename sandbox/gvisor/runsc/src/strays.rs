//! Processes of runsc that no record names, found by their command lines: they carry runsc's state
//! directory and the container's id in their arguments.

use std::fs;
use std::path::{Path, PathBuf};

use sandbox_host::ProcessRef;

/// The processes that run for container `id` in `bundle` below runsc's state directory `root`: its
/// sandbox, if it was launched with it, and its gofer. A `create` that was cut short leaves them.
pub fn strays(root: &Path, id: &str, bundle: &Path) -> Vec<ProcessRef> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let line = fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))).unwrap_or_default();
            is_stray(&line, root, id, bundle)
        })
        .filter_map(ProcessRef::of)
        .collect()
}

fn is_stray(cmdline: &[u8], root: &Path, id: &str, bundle: &Path) -> bool {
    let args: Vec<&str> = cmdline
        .split(|b| *b == 0)
        .filter_map(|arg| std::str::from_utf8(arg).ok())
        .filter(|arg| !arg.is_empty())
        .collect();
    let root = format!("--root={}", root.display());
    let bundle = bundle.to_string_lossy();
    let ours = args.iter().any(|arg| *arg == root);
    // The sandbox's last argument is its id; a gofer names its bundle.
    let sandbox = args.contains(&"boot") && args.last() == Some(&id);
    let gofer = args.contains(&"gofer")
        && args.iter().any(|arg| *arg == bundle || arg.strip_prefix("--bundle=") == Some(&bundle));
    ours && (sandbox || gofer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_containers_processes_are_strays() {
        let line = |args: &[&str]| args.join("\0").into_bytes();
        let stray =
            |args: &[&str]| is_stray(&line(args), Path::new("/run/r/ns"), "sb", Path::new("/b/sb"));
        assert!(stray(&["runsc-sandbox", "--root=/run/r/ns", "boot", "--cpu-num=2", "sb"]));
        assert!(stray(&["runsc-gofer", "--root=/run/r/ns", "gofer", "--bundle", "/b/sb"]));
        assert!(stray(&["runsc-gofer", "--root=/run/r/ns", "gofer", "--bundle=/b/sb"]));
        assert!(!stray(&["runsc-sandbox", "--root=/run/r/ns", "boot", "other"]));
        assert!(!stray(&["runsc-sandbox", "--root=/run/r/other", "boot", "sb"]));
        assert!(!stray(&["runsc", "--root=/run/r/ns", "state", "sb"]));
        assert!(!stray(&["runsc-gofer", "--root=/run/r/ns", "gofer", "--bundle", "/b/sb2"]));
    }
}
