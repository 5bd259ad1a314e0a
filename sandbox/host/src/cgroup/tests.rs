use std::fs;
use std::time::Duration;

use super::*;
use crate::command::Command;
use crate::host::Host;
use crate::real::RealHost;

fn relative_text(path: &str) -> Result<String, String> {
    relative(path).map(|path| path.display().to_string()).map_err(|e| e.to_string())
}

#[test]
fn paths_of_both_drivers() {
    for (given, expected) in [
        ("/kubepods/burstable/pod1/abc", "kubepods/burstable/pod1/abc"),
        ("abc", "abc"),
        (
            "kubepods-burstable-pod1.slice:cri-containerd:abc",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
        ),
        (":p:n.x", "system.slice/p-n.x.scope"),
        ("-.slice:p:n", "p-n.scope"),
    ] {
        assert_eq!(relative_text(given).as_deref(), Ok(expected));
    }
}

#[test]
fn paths_that_would_escape_are_refused() {
    for bad in ["", "/", "a/../../b", "a:b", "x.slice:../../p:n", "noslice:p:n", "a--b.slice:p:n"] {
        let error = relative_text(bad).unwrap_err();
        assert!(error.starts_with(&format!("cgroup path {bad:?} is not allowed: ")), "{error}");
    }
}

/// A directory that looks like a v2 hierarchy.
fn fake_v2() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "memory cpu pids\n").unwrap();
    dir
}

#[test]
fn v2_limits_and_figures() {
    let dir = fake_v2();
    let group = Cgroup::below(dir.path(), "/pods/p1").unwrap();
    group.create().unwrap();
    let at = dir.path().join("pods/p1");
    fs::write(at.join("memory.swap.max"), "max").unwrap();
    let limits = Limits {
        memory: Some(64 << 20),
        memory_swap: Some(96 << 20),
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        pids: Some(-1),
        ..Limits::default()
    };
    group.limit(&limits).unwrap();
    let read = |file: &str| fs::read_to_string(at.join(file)).unwrap();
    assert_eq!(
        ["memory.max", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max"].map(read),
        ["67108864", "33554432", "39", "50000 100000", "max"]
    );
    fs::write(at.join("memory.stat"), "anon 5\ninactive_file 7\n").unwrap();
    fs::write(at.join("memory.current"), "100\n").unwrap();
    fs::write(at.join("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
    fs::write(at.join("cpu.stat"), "usage_usec 3\nuser_usec 1\n").unwrap();
    let stats = group.stats();
    assert_eq!(stats.memory_usage, Some(100));
    assert_eq!(stats.memory_limit, Some(64 << 20));
    assert_eq!(stats.memory_inactive_file, Some(7));
    assert_eq!(stats.oom_kills, Some(2));
    assert_eq!(stats.cpu_total_ns, Some(3000));
    assert_eq!(stats.pids_limit, None);
}

/// Uses the host's hierarchies, whichever version they are.
#[tokio::test]
#[ignore = "needs cgroup"]
async fn a_real_group_enforces_limits_counts_usage_and_is_removed() {
    let name = format!("/bulkhead-test-{}", std::process::id());
    let group = Cgroup::new(&name).unwrap();
    group.create().unwrap();
    group.limit(&Limits { memory: Some(32 << 20), ..Limits::default() }).unwrap();
    let host = RealHost::new().unwrap();
    let directories: Vec<String> = group
        .directories()
        .iter()
        .map(|dir| format!("echo $$ > {}/cgroup.procs", dir.display()))
        .collect();
    let script = format!("{} && head -c 200m /dev/zero | tail", directories.join(" && "));
    let command = Command::new("/bin/sh").args(["-c", script.as_str()]);
    let output = host.run(command, Duration::from_secs(60)).await.unwrap();
    assert_ne!(output.exit.status, 0, "{}", String::from_utf8_lossy(&output.stderr));
    let stats = group.stats();
    assert!(group.oom_kills().unwrap() > 0);
    assert_eq!(stats.memory_limit, Some(32 << 20));
    assert!(stats.cpu_total_ns.unwrap() > 0);
    assert!(group.processes().unwrap().is_empty());
    group.remove().await.unwrap();
    group.remove().await.unwrap();
    assert!(group.directories().iter().all(|directory| !directory.exists()));
}
