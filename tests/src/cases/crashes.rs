//! A VM, or one of the programs of it, dies or freezes at any moment: the Pod is soon dead, leaks
//! nothing, and the next one starts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::case::{Case, cases};
use super::vm_processes::{Killer, programs, signal_all};
use crate::bed::process::{patience, until};
use crate::bed::traces::Traces;
use crate::client::cri::Cri;
use crate::client::netns;
use crate::client::pod::{Container, Pod, pod_config, shell};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![
    killed_while_running,
    guest_crashes,
    killed_while_booting,
    killed_while_a_container_is_made,
    killed_while_an_exec_runs,
    killed_while_the_pod_is_stopped,
    frozen_vm_blocks_nothing,
    vms_side_by_side,
];

/// How long it may take until containerd knows that a Pod is dead; mostly it takes a second.
const NOTICED: Duration = Duration::from_secs(20);

/// How long a call may take when the guest does not answer: twice the handler's deadlines.
const BLOCKED: Duration = Duration::from_secs(45);

const SHIM: &str = "containerd-shim-bulkhead-v2";

/// Waits until containerd knows that the Pod and its container are dead; prints how long it took.
fn dies(what: &str, begun: Instant, pod: &Pod<'_>, container: &Container<'_>) -> Result<()> {
    let status = container.exited_within(NOTICED).with_context(|| format!("after {what}"))?;
    ensure!(status.exit_code != 0, "after {what}: the container exited with 0");
    until(&format!("after {what}: the Pod is not ready"), NOTICED, || {
        Ok((!pod.is_ready()?).then_some(()))
    })?;
    println!("    {what}: the Pod is dead after {:.1} s", begun.elapsed().as_secs_f32());
    Ok(())
}

/// A dead Pod's network is as the plugin made it, so that the plugin can remove it.
fn network_is_restored(netns: &Path, ip: &str) -> Result<()> {
    let see = |words: &[&str]| netns::run(netns, words).ok();
    until("the network is restored", Duration::from_secs(10), || {
        let links = see(&["ip", "-o", "link", "show"])?;
        let filters = see(&["tc", "filter", "show", "dev", "eth0", "ingress"])?;
        let addresses = see(&["ip", "-o", "addr", "show", "dev", "eth0"])?;
        let clean = !links.contains("tap") && filters.is_empty() && addresses.contains(ip);
        Ok(clean.then_some(()))
    })
}

/// A Pod starts, answers and is removed.
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
            let netns = netns::path(stage, &pod)?;
            let ip = pod.ip()?;
            let begun = Instant::now();
            signal_all(stage, &program, &pod, Signal::SIGKILL)?;
            dies(&format!("{program} was killed"), begun, &pod, &container)?;
            network_is_restored(&netns, &ip).with_context(|| program.clone())?;
            ensure!(container.exec("true").is_err(), "an exec in a dead Pod");
        }
        Traces::compare(&stage.node, &before).with_context(|| format!("{program} was killed"))?;
    }
    another_pod_runs(stage)
}

/// Root in a container crashes the guest's kernel; the case does nothing on the host's.
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

fn killed_while_booting(stage: &Stage) -> Result<()> {
    let mut all = programs(stage)?;
    all.push(SHIM.to_owned());
    let delays = [0, 400].map(Duration::from_millis).map(patience);
    for (program, delay) in all.iter().flat_map(|p| delays.map(|delay| (p, delay))) {
        let what = format!("{program} killed {delay:?} after it appeared");
        let before = Traces::of(&stage.node);
        let mut killer = Killer::start(stage, program, delay);
        let begun = Instant::now();
        let config = pod_config(stage)?;
        let outcome = Pod::run_config(stage, config.clone());
        let took = begun.elapsed();
        let killed = killer.stop();
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
    let vmm = programs(stage)?.swap_remove(0);
    {
        let pod = Pod::run(stage)?;
        let container = pod.shell("sleep 1000")?;
        let socket = stage.node.socket();
        std::thread::scope(|scope| {
            let execs: Vec<_> = (0..4)
                .map(|_| {
                    let socket = &socket;
                    let id = &container.id;
                    scope.spawn(move || Cri::new(socket)?.exec(id, &["sleep", "1001"], 80))
                })
                .collect();
            until("four execs run", NOTICED, || {
                let processes = container.out("ps -o args")?;
                let count = processes.lines().filter(|line| *line == "sleep 1001").count();
                Ok((count == 4).then_some(()))
            })?;
            let begun = Instant::now();
            signal_all(stage, &vmm, &pod, Signal::SIGKILL)?;
            for exec in execs {
                let end = exec.join().map_err(|_| anyhow::anyhow!("panicked"))?;
                let failed = end.as_ref().map_or(true, |done| done.exit_code != 0);
                ensure!(failed, "an exec outlived its VM: {end:?}");
            }
            let took = begun.elapsed();
            ensure!(took < patience(NOTICED), "the execs failed after {took:?}");
            println!("    execs failed {:.1} s after their VM was killed", took.as_secs_f32());
            dies("its VM was killed", begun, &pod, &container)
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

/// Calls on a Pod whose guest does not answer fail at their deadlines; other Pods are not affected.
fn frozen_vm_blocks_nothing(stage: &Stage) -> Result<()> {
    let vmm = programs(stage)?.swap_remove(0);
    let other = Pod::run(stage)?;
    let lively = other.shell("sleep 1000")?;
    {
        let pod = Pod::run(stage)?;
        let container = pod.shell("sleep 1000")?;
        signal_all(stage, &vmm, &pod, Signal::SIGSTOP)?;
        let timed = |what: &str, verb: &dyn Fn() -> Result<()>| -> Result<()> {
            let begun = Instant::now();
            let end = verb();
            let took = begun.elapsed();
            let error = end.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
            println!("    {what}: {:.1} s {error:.90}", took.as_secs_f32());
            ensure!(took < patience(BLOCKED), "{what} took {took:?} in a frozen VM");
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
            // A second stop may be necessary when the first reached its deadline.
            let _ = stage.cri.stop_pod(&pod.id);
            Ok((!pod.is_ready()?).then_some(()))
        })?;
    }
    ensure!(lively.out("echo ok")? == "ok", "the other Pod afterwards");
    Ok(())
}

/// Two Pods' VMs share nothing, and one survives when the other is killed.
fn vms_side_by_side(stage: &Stage) -> Result<()> {
    let vmm = programs(stage)?.swap_remove(0);
    let one = Pod::run(stage)?;
    let two = Pod::run(stage)?;
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
    signal_all(stage, &vmm, &one, Signal::SIGKILL)?;
    dies("one of two was killed", begun, &one, &first)?;
    ensure!(two.is_ready()? && second.out("echo alive")? == "alive", "the other died too");
    if two.ip()? == one.ip()? {
        bail!("two Pods with one address");
    }
    Ok(())
}
