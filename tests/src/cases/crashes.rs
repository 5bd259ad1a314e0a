//! A machine, or one of the programs beside it, ends or stands still at whatever moment: the Pod
//! is dead, soon and wholly, and the next one starts.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Case, cases};
use crate::bed::process::{patience, until};
use crate::bed::traces::{self, Traces};
use crate::client::cri::Cri;
use crate::client::netns;
use crate::client::pod::{Container, Pod, pod_config, shell};
use crate::client::stage::{Stage, skip};

pub(super) const CASES: &[Case] = cases![
    killed_while_running,
    guest_crashes,
    killed_while_booting,
    killed_while_a_container_is_made,
    killed_while_an_exec_runs,
    killed_while_the_pod_is_stopped,
    frozen_machine_blocks_nothing,
    machines_side_by_side,
];

/// How long containerd may not know of a Pod's end. It learns of most in a second.
const NOTICED: Duration = Duration::from_secs(20);

/// How long a verb may take whose other side does not answer: the handler's deadlines, twice.
const BLOCKED: Duration = Duration::from_secs(45);

const SHIM: &str = "containerd-shim-bulkhead-v2";

/// The programs that a Pod's machine consists of on the host.
pub(super) fn programs(stage: &Stage) -> Result<Vec<String>> {
    if !stage.handler.is_vm() {
        return skip("it has no virtual machine");
    }
    let monitor = stage.node.runtime(stage.handler).context("no machine monitor")?;
    let monitor = monitor.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut all = vec![monitor, "virtiofsd".to_owned()];
    if all[0].starts_with("qemu") {
        all.push("vhost-device-vsock".to_owned());
    }
    Ok(all)
}

/// The bed's processes of `program` whose command line or cgroup speaks of `pod`; any if empty.
fn processes(stage: &Stage, program: &str, pod: &str) -> Vec<i32> {
    let is_it = |(pid, line): (i32, String)| {
        let name = line.split(' ').nth(1).unwrap_or_default();
        let name = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let ours = line.contains(pod) || group.contains(pod);
        (name == program && ours).then_some(pid)
    };
    traces::processes(stage.node.place()).into_iter().filter_map(is_it).collect()
}

/// The processes of `program` that run for `pod`.
pub(super) fn pids(stage: &Stage, program: &str, pod: &Pod<'_>) -> Vec<i32> {
    let group = pod.cgroup().rsplit('/').next().unwrap_or_default();
    let mut pids = processes(stage, program, group);
    pids.extend(processes(stage, program, &pod.id));
    pids
}

fn signal_all(stage: &Stage, program: &str, pod: &Pod<'_>, signal: Signal) -> Result<()> {
    let pids = pids(stage, program, pod);
    ensure!(!pids.is_empty(), "no {program} runs for the Pod");
    for pid in pids {
        // virtiofsd may be two processes, of which one takes the other along.
        let _ = kill(Pid::from_raw(pid), signal);
    }
    Ok(())
}

/// Waits until containerd knows the Pod and its container as dead; prints how long it took.
fn dies(what: &str, begun: Instant, pod: &Pod<'_>, container: &Container<'_>) -> Result<()> {
    let status = container.exited_within(NOTICED).with_context(|| format!("after {what}"))?;
    ensure!(status.exit_code != 0, "after {what}: the container ended with 0");
    until(&format!("after {what}: the Pod is not ready"), NOTICED, || {
        Ok((!pod.is_ready()?).then_some(()))
    })?;
    println!("    {what}: the Pod is dead after {:.1} s", begun.elapsed().as_secs_f32());
    Ok(())
}

/// A dead Pod's network is as the plugin made it, so that the plugin can take it down.
fn network_is_given_back(netns: &Path, ip: &str) -> Result<()> {
    let see = |words: &[&str]| netns::run(netns, words).ok();
    until("the network is given back", Duration::from_secs(10), || {
        let links = see(&["ip", "-o", "link", "show"])?;
        let filters = see(&["tc", "filter", "show", "dev", "eth0", "ingress"])?;
        let addresses = see(&["ip", "-o", "addr", "show", "dev", "eth0"])?;
        let clean = !links.contains("tap") && filters.is_empty() && addresses.contains(ip);
        Ok(clean.then_some(()))
    })
}

/// A Pod starts, answers and goes.
fn another_pod_runs(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage).context("the next Pod")?;
    let container = pod.shell("sleep 1000").context("the next Pod's container")?;
    ensure!(container.out("echo next")? == "next");
    Ok(())
}

fn killed_while_running(stage: &Stage) -> Result<()> {
    for program in programs(stage)? {
        let before = Traces::of(&stage.node);
        {
            let pod = Pod::run(stage)?;
            let container = pod.shell("sleep 1000")?;
            let (netns, ip) = (netns::path(stage, &pod)?, pod.ip()?);
            let begun = Instant::now();
            signal_all(stage, &program, &pod, Signal::SIGKILL)?;
            dies(&format!("{program} was killed"), begun, &pod, &container)?;
            network_is_given_back(&netns, &ip).with_context(|| program.clone())?;
            ensure!(container.exec("true").is_err(), "an exec in a dead Pod");
        }
        Traces::compare(&stage.node, &before).with_context(|| format!("{program} was killed"))?;
    }
    another_pod_runs(stage)
}

/// Root in a container reaches its own kernel, and no other: never on the host's.
fn guest_crashes(stage: &Stage) -> Result<()> {
    programs(stage)?;
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let guest = container.out("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(guest != host.trim(), "the container is on the host's kernel");
    let begun = Instant::now();
    let crash = container.exec("echo c > /proc/sysrq-trigger; sleep 30");
    ensure!(
        crash.as_ref().is_err() || crash.as_ref().is_ok_and(|done| done.exit_code != 0),
        "a crash that did not happen: {crash:?}"
    );
    dies("the guest crashed", begun, &pod, &container)?;
    drop(pod);
    another_pod_runs(stage)
}

/// Kills every process of `program` from now on, until dropped.
struct Hunter {
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u32>>,
}

impl Hunter {
    /// Waits for the first one, lets it live for `delay`, then kills it.
    fn release(stage: &Stage, program: &str, delay: Duration) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (asked, node) = (std::sync::Arc::clone(&stop), std::sync::Arc::clone(&stage.node));
        let program = program.to_owned();
        let thread = std::thread::spawn(move || {
            let mut killed = 0;
            while killed == 0 && !asked.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                for (pid, line) in traces::processes(node.place()) {
                    let name = line.split(' ').nth(1).unwrap_or_default();
                    // Not the short-lived one that is asked to start, to delete or for its options.
                    let words = [" start", " delete", " --help"];
                    let passing = words.iter().any(|end| line.ends_with(end));
                    if name.rsplit('/').next() == Some(program.as_str()) && !passing {
                        if killed == 0 {
                            std::thread::sleep(delay);
                        }
                        killed += u32::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
                    }
                }
            }
            killed
        });
        Self { stop, thread: Some(thread) }
    }

    /// How many were killed.
    fn recall(&mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Hunter {
    fn drop(&mut self) {
        self.recall();
    }
}

fn killed_while_booting(stage: &Stage) -> Result<()> {
    let mut all = programs(stage)?;
    all.push(SHIM.to_owned());
    let delays = [0, 400].map(Duration::from_millis).map(patience);
    for (program, delay) in all.iter().flat_map(|p| delays.map(|delay| (p, delay))) {
        let what = format!("{program} killed {delay:?} after it appeared");
        let before = Traces::of(&stage.node);
        let mut hunter = Hunter::release(stage, program, delay);
        let begun = Instant::now();
        let config = pod_config(stage)?;
        let outcome = Pod::run_config(stage, config.clone());
        let took = begun.elapsed();
        let killed = hunter.recall();
        ensure!(killed > 0, "{what}: there was none");
        match outcome {
            Err(_) => println!("    {what}: refused after {:.1} s", took.as_secs_f32()),
            // So late that the Pod was there already.
            Ok(pod) => until(&format!("{what}: the Pod is not ready"), NOTICED, || {
                Ok((!pod.is_ready()?).then_some(()))
            })?,
        }
        ensure!(took < patience(BLOCKED), "{what}: RunPodSandbox took {took:?}");
        Traces::compare(&stage.node, &before).context(what)?;
    }
    another_pod_runs(stage)
}

fn killed_while_a_container_is_made(stage: &Stage) -> Result<()> {
    for (program, delay) in programs(stage)?.iter().zip([0, 100, 250].map(Duration::from_millis)) {
        let before = Traces::of(&stage.node);
        let what = format!("{program} killed {delay:?} after CreateContainer was asked for");
        {
            let pod = Pod::run(stage)?;
            let (made, took) = std::thread::scope(|scope| {
                let killer = scope.spawn(|| {
                    std::thread::sleep(patience(delay));
                    signal_all(stage, program, &pod, Signal::SIGKILL)
                });
                let begun = Instant::now();
                let made = pod.shell("sleep 1000");
                let took = begun.elapsed();
                killer.join().map_err(|_| anyhow::anyhow!("panicked"))??;
                anyhow::Ok((made, took))
            })?;
            ensure!(took < patience(BLOCKED), "{what}: it took {took:?}");
            if let Ok(container) = made {
                container.exited_within(NOTICED).with_context(|| what.clone())?;
            }
            until(&format!("{what}: the Pod is not ready"), NOTICED, || {
                Ok((!pod.is_ready()?).then_some(()))
            })?;
        }
        Traces::compare(&stage.node, &before).context(what)?;
    }
    another_pod_runs(stage)
}

fn killed_while_an_exec_runs(stage: &Stage) -> Result<()> {
    let monitor = programs(stage)?.swap_remove(0);
    {
        let pod = Pod::run(stage)?;
        let container = pod.shell("sleep 1000")?;
        let socket = stage.node.socket();
        std::thread::scope(|scope| {
            let execs: Vec<_> = (0..4)
                .map(|_| {
                    let (socket, id) = (&socket, &container.id);
                    scope.spawn(move || Cri::new(socket)?.exec(id, &["sleep", "1000"], 80))
                })
                .collect();
            std::thread::sleep(patience(Duration::from_secs(2)));
            let begun = Instant::now();
            signal_all(stage, &monitor, &pod, Signal::SIGKILL)?;
            for exec in execs {
                let end = exec.join().map_err(|_| anyhow::anyhow!("panicked"))?;
                let failed = end.as_ref().map_or(true, |done| done.exit_code != 0);
                ensure!(failed, "an exec outlived its machine: {end:?}");
            }
            let took = begun.elapsed();
            ensure!(took < patience(NOTICED), "the execs ended after {took:?}");
            println!("    execs ended {:.1} s after their machine", took.as_secs_f32());
            dies("its machine was killed", begun, &pod, &container)
        })?;
    }
    another_pod_runs(stage)
}

fn killed_while_the_pod_is_stopped(stage: &Stage) -> Result<()> {
    for program in programs(stage)? {
        for delay in [0, 60, 200].map(Duration::from_millis) {
            let before = Traces::of(&stage.node);
            {
                let pod = Pod::run(stage)?;
                let _container = pod.shell("sleep 1000")?;
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        std::thread::sleep(delay);
                        // It may be gone already.
                        let _ = signal_all(stage, &program, &pod, Signal::SIGKILL);
                    });
                    let begun = Instant::now();
                    let stopped = stage.cri.stop_pod(&pod.id);
                    stopped.with_context(|| format!("{program} killed {delay:?} later"))?;
                    ensure!(begun.elapsed() < patience(BLOCKED), "it took {:?}", begun.elapsed());
                    anyhow::Ok(())
                })?;
            }
            let what = || format!("{program} killed {delay:?} after StopPodSandbox");
            Traces::compare(&stage.node, &before).with_context(what)?;
        }
    }
    another_pod_runs(stage)
}

/// A guest that answers nothing any more costs its own Pod a deadline, and others nothing.
fn frozen_machine_blocks_nothing(stage: &Stage) -> Result<()> {
    let monitor = programs(stage)?.swap_remove(0);
    let other = Pod::run(stage)?;
    let lively = other.shell("sleep 1000")?;
    {
        let pod = Pod::run(stage)?;
        let container = pod.shell("sleep 1000")?;
        signal_all(stage, &monitor, &pod, Signal::SIGSTOP)?;
        let timed = |what: &str, verb: &dyn Fn() -> Result<()>| -> Result<()> {
            let begun = Instant::now();
            let end = verb();
            let took = begun.elapsed();
            let said = end.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
            println!("    {what}: {:.1} s {said:.90}", took.as_secs_f32());
            ensure!(took < patience(BLOCKED), "{what} took {took:?} in a frozen machine");
            Ok(())
        };
        timed("status", &|| container.status().map(drop))?;
        timed("exec", &|| container.exec("true").map(drop))?;
        timed("stats", &|| stage.cri.stats(&container.id).map(drop))?;
        timed("create", &|| pod.start("late", shell("true")).map(drop))?;
        ensure!(lively.out("echo ok")? == "ok", "the other Pod");
        timed("stop of the container", &|| stage.cri.stop(&container.id, 1))?;
        timed("stop of the Pod", &|| stage.cri.stop_pod(&pod.id))?;
        until("the Pod is stopped", NOTICED, || {
            // A second stop may be due when the first ended at a deadline.
            let _ = stage.cri.stop_pod(&pod.id);
            Ok((!pod.is_ready()?).then_some(()))
        })?;
    }
    ensure!(lively.out("echo ok")? == "ok", "the other Pod afterwards");
    Ok(())
}

/// Two Pods' machines have nothing in common, and one's end is not the other's.
fn machines_side_by_side(stage: &Stage) -> Result<()> {
    let monitor = programs(stage)?.swap_remove(0);
    let (one, two) = (Pod::run(stage)?, Pod::run(stage)?);
    let mark = |word: &str| {
        format!("echo {word} > /dev/shm/word; echo {word} > /tmp/word; exec sleep 47{word}")
    };
    let first = one.shell(&mark("11"))?;
    let second = two.shell(&mark("12"))?;
    let read = "cat /proc/sys/kernel/random/boot_id";
    ensure!(first.out(read)? != second.out(read)?, "two Pods on one kernel");
    for (container, own, other) in [(&first, "11", "12"), (&second, "12", "11")] {
        until("its own marks", Duration::from_secs(10), || {
            Ok((container.out("cat /dev/shm/word /tmp/word")? == format!("{own}\n{own}"))
                .then_some(()))
        })?;
        let seen = container.out("ps -o args; ls -R /dev/shm /tmp; cat /proc/mounts")?;
        ensure!(!seen.contains(&format!("sleep 47{other}")), "the other Pod's process: {seen}");
        let bundles = container.out("ls /run/bulkhead 2>/dev/null | wc -l")?;
        ensure!(bundles == "0", "the guest's own folders are in the container");
    }
    let begun = Instant::now();
    signal_all(stage, &monitor, &one, Signal::SIGKILL)?;
    dies("one of two was killed", begun, &one, &first)?;
    ensure!(two.is_ready()? && second.out("echo alive")? == "alive", "the other died too");
    if two.ip()? == one.ip()? {
        bail!("two Pods with one address");
    }
    Ok(())
}
