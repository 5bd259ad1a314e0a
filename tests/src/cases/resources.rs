//! Limits and figures: stats, update, pause, out of memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;

use super::case::{Case, cases};
use crate::bed::process::until;
use crate::bed::traces::cgroup_roots;
use crate::client::pod::{Container, Pod, command, resources, shell};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![
    stats_tell_cpu_and_memory,
    an_idle_container_has_used_the_cpu,
    memory_update_takes_effect,
    pause_and_resume,
    out_of_memory,
    metrics_by_ctr,
];

const MIB: i64 = 1 << 20;

fn stats_tell_cpu_and_memory(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("x=$(head -c 8000000 /dev/zero | tr '\\0' x); while :; do :; done");
    resources(&mut config).memory_limit_in_bytes = 256 * MIB;
    let container = pod.start("busy", config)?;
    let sample = || -> Result<(u64, u64, u64)> {
        let stats = stage.cri.stats(&container.id)?;
        let cpu = stats.cpu.unwrap_or_default().usage_core_nano_seconds.unwrap_or_default();
        let memory = stats.memory.unwrap_or_default();
        let set = memory.working_set_bytes.unwrap_or_default();
        Ok((cpu.value, set.value, memory.available_bytes.unwrap_or_default().value))
    };
    let first = until("cpu and memory in the stats", Duration::from_secs(20), || {
        let now = sample()?;
        Ok((now.0 > 0 && now.1 > 1_000_000).then_some(now))
    })?;
    let begun = Instant::now();
    let then = until("50 ms more of a processor", Duration::from_secs(20), || {
        let now = sample()?;
        Ok((now.0.saturating_sub(first.0) >= 50_000_000).then_some(now))
    })?;
    let used = then.0 - first.0;
    // The first sample may be a second old.
    let most = 4 * (begun.elapsed() + Duration::from_secs(1)).as_nanos();
    ensure!(u128::from(used) < most, "cpu: {used} ns in {:?}", begun.elapsed());
    ensure!(then.1 < 256 << 20, "working set {} is above the limit", then.1);
    ensure!(then.2 > 0 && then.2 < 256 << 20, "available below a 256 MiB limit: {}", then.2);
    Ok(())
}

/// It ran to start, and CRI's clients take 0 for a figure that is missing.
fn an_idle_container_has_used_the_cpu(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.start("idle", command(&["sleep", "1000"]))?;
    until("a CPU time in the stats", Duration::from_secs(20), || {
        let cpu = stage.cri.stats(&container.id)?.cpu.unwrap_or_default();
        let used = cpu.usage_core_nano_seconds.unwrap_or_default().value;
        Ok((used > 0).then_some(()))
    })
}

/// The limits that the memory controller holds for `pod` and all below it, v1 or v2.
fn memory_limits(pod: &Pod<'_>) -> Vec<(String, i64)> {
    let mut limits = Vec::new();
    for root in cgroup_roots() {
        let top = root.join(pod.cgroup().trim_start_matches('/'));
        let below = fs::read_dir(&top).into_iter().flatten().flatten().map(|e| e.path());
        for dir in [top.clone()].into_iter().chain(below) {
            for file in ["memory.limit_in_bytes", "memory.max"] {
                let Ok(text) = fs::read_to_string(dir.join(file)) else { continue };
                limits.extend(text.trim().parse().map(|n| (dir.display().to_string(), n)));
            }
        }
    }
    limits
}

fn memory_update_takes_effect(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 256 * MIB;
    let container = pod.start("main", config)?;
    let new =
        api::LinuxContainerResources { memory_limit_in_bytes: 300 * MIB, ..Default::default() };
    stage.cri.update(&container.id, new)?;
    if stage.handler.is_vm() {
        guest_has_the_limit(&container)?;
        return vm_grows(stage, &container);
    }
    // A sandbox may add what it uses itself, but less than the step from the old limit to the new.
    let limits = memory_limits(&pod);
    let around = |mib: i64| limits.iter().any(|(_, n)| (mib * MIB..(mib + 40) * MIB).contains(n));
    ensure!(around(300), "no limit of about 300 MiB in {limits:?}");
    ensure!(!around(256), "a limit of about 256 MiB stays: {limits:?}");
    ensure!(container.out("echo alive")? == "alive");
    Ok(())
}

/// In a VM the limit is set in the guest, and the guest has as much memory.
fn guest_has_the_limit(container: &Container<'_>) -> Result<()> {
    let limit: i64 = container.out("cat /sys/fs/cgroup/memory.max")?.parse()?;
    ensure!(limit == 300 * MIB, "the container's limit is {limit}");
    let room = container.out("grep MemTotal /proc/meminfo | awk '{print $2}'")?;
    let room: i64 = room.parse()?;
    ensure!(room << 10 > 300 * MIB, "the guest has {room} KiB for a limit of 300 MiB");
    Ok(())
}

/// Memory and processors beyond the VM's size are plugged in while it runs.
fn vm_grows(stage: &Stage, container: &Container<'_>) -> Result<()> {
    let seen = || -> Result<(i64, u32)> {
        let memory = container.out("awk '/^MemTotal/ {print $2}' /proc/meminfo")?;
        let processors = container.out("grep -c ^processor /proc/cpuinfo")?;
        Ok((memory.parse::<i64>()? << 10, processors.parse()?))
    };
    let before = seen()?;
    ensure!(before.0 < 800 * MIB && before.1 == 1, "{before:?} to begin with");
    let new = api::LinuxContainerResources {
        memory_limit_in_bytes: 1000 * MIB,
        cpu_quota: 200_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    stage.cri.update(&container.id, new)?;
    let (memory, processors) = seen()?;
    ensure!(memory > 1000 * MIB, "the guest has {memory} bytes for a limit of 1000 MiB");
    // A VM gets no more processors than its host has.
    let most = std::thread::available_parallelism()?.get().min(2);
    ensure!(processors as usize == most, "the guest has {processors} processors for a limit of 2");
    if most == 1 {
        println!("    this host has one processor: a second one for the VM was not tested");
    }
    Ok(())
}

fn pause_and_resume(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")?;
    container.logged("3")?;
    let ctr = |verb: &str| {
        stage.node.ctr("k8s.io").args(["tasks", verb]).arg(&container.id).ok().map(drop)
    };
    let state = || -> Result<String> {
        let list = stage.node.ctr("k8s.io").args(["tasks", "ls"]).ok()?;
        let line = list.lines().find(|line| line.starts_with(&container.id));
        let state = line.and_then(|line| line.split_whitespace().last().map(str::to_owned));
        state.with_context(|| format!("no task {} in {list}", container.id))
    };
    ctr("pause")?;
    ensure!(state()? == "PAUSED", "state after pause: {}", state()?);
    let still = until("no more output in flight", Duration::from_secs(10), || {
        let before = container.log()?.len();
        std::thread::sleep(Duration::from_millis(300));
        Ok((container.log()?.len() == before).then_some(before))
    })?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(container.log()?.len() == still, "a paused container wrote");
    ctr("resume")?;
    ensure!(state()? == "RUNNING", "state after resume: {}", state()?);
    until("output after resume", Duration::from_secs(10), || {
        Ok((container.log()?.len() > still).then_some(()))
    })
}

fn out_of_memory(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let hog = "exec awk 'BEGIN { for (i = 0; ; i++) a[i] = sprintf(\"%4096s\", i) }'";
    let mut config = shell(&format!("sleep 0.3; {hog}"));
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = 64 * MIB;
    limits.memory_swap_limit_in_bytes = 64 * MIB;
    let container = pod.start("hungry", config)?;
    let status = container.exited_within(Duration::from_secs(60))?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    // The exit and the OOM event are sent apart; CRI may learn of the exit first.
    let reason = until("reason OOMKilled", Duration::from_secs(5), || {
        let reason = container.status()?.reason;
        Ok((reason == "OOMKilled").then_some(reason))
    });
    reason.with_context(|| format!("reason {:?}", status.reason)).map(drop)
}

fn metrics_by_ctr(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("while :; do :; done")?;
    until("cpu and memory in ctr's metrics", Duration::from_secs(20), || {
        let text = stage.node.ctr("k8s.io").args(["tasks", "metrics"]).arg(&container.id).ok()?;
        let positive = |keys: &[&str]| {
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                let key = words.next().unwrap_or_default();
                let value = words.next().and_then(|v| v.parse::<u64>().ok());
                keys.contains(&key) && value.is_some_and(|v| v > 0)
            })
        };
        let cpu = positive(&["cpuacct.usage", "cpu.usage_usec"]);
        let memory = positive(&["memory.usage_in_bytes", "memory.usage"]);
        Ok((cpu && memory).then_some(()))
    })
}
