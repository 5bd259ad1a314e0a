//! containerd or the shim dies: what must survive and what must not.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::case::{Case, cases};
use crate::bed::process::until;
use crate::bed::traces;
use crate::bed::version::Version;
use crate::client::pod::{Container, Pod, shell};
use crate::client::stage::{Stage, skip};

pub(super) const CASES: &[Case] = cases![
    containerd_killed_while_a_pod_runs,
    containerd_restarted_in_peace,
    exit_while_containerd_is_down,
    shim_killed,
];

/// Every line from 1 to the last is there once and in order.
fn count_is_whole(container: &Container<'_>) -> Result<usize> {
    let lines = container.log()?;
    for (at, line) in lines.iter().enumerate() {
        ensure!(line.text == (at + 1).to_string(), "line {} is {:?}", at + 1, line.text);
    }
    Ok(lines.len())
}

fn survives(stage: &Stage, signal: Signal) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done")?;
    let quiet = pod.start("quiet", shell("sleep 1000"))?;
    container.logged("10")?;
    let ip = pod.ip()?;
    stage.node.stop(signal)?;
    std::thread::sleep(Duration::from_secs(2));
    stage.node.start()?;
    ensure!(pod.is_ready()?, "the Pod is not ready any more");
    ensure!(pod.ip()? == ip, "the address changed: {} was {ip}", pod.ip()?);
    ensure!(container.is_running()? && quiet.is_running()?, "a container is not running any more");
    ensure!(container.out("echo again")? == "again", "exec after the restart");
    ensure!(quiet.out("echo again")? == "again", "exec in the quiet container");
    let before = count_is_whole(&container)?;
    // Two seconds without a reader are some 100 lines, which must follow, none lost. An emulated
    // processor writes fewer.
    let seconds = if stage.handler.is_vm() { 90 } else { 20 };
    until("the lines written meanwhile", Duration::from_secs(seconds), || {
        Ok((container.log()?.len() > before + 100).then_some(()))
    })?;
    count_is_whole(&container)?;
    stage.cri.stop(&container.id, 2)?;
    ensure!(container.exited()?.exit_code != 0);
    let mut late = shell("echo late");
    late.metadata = Some(k8s_cri::v1::ContainerMetadata { name: "late".to_owned(), attempt: 1 });
    let late = pod.create(late)?;
    stage.cri.start(&late.id)?;
    late.logged("late")
}

fn containerd_killed_while_a_pod_runs(stage: &Stage) -> Result<()> {
    survives(stage, Signal::SIGKILL)
}

fn containerd_restarted_in_peace(stage: &Stage) -> Result<()> {
    survives(stage, Signal::SIGTERM)
}

fn exit_while_containerd_is_down(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let gate = stage.folder()?;
    let script = "until [ -e /gate/open ]; do sleep 0.1; done; echo done | tee /gate/done; exit 23";
    let mut config = shell(script);
    config.mounts = vec![crate::client::pod::bind(&gate, "/gate", false)];
    let container = pod.start("main", config)?;
    ensure!(container.is_running()?);
    stage.node.stop(Signal::SIGKILL)?;
    std::fs::write(gate.join("open"), "")?;
    // The exit follows long before containerd is up.
    until("the container is about to exit", Duration::from_secs(20), || {
        Ok(gate.join("done").exists().then_some(()))
    })?;
    stage.node.start()?;
    let status = container.exited()?;
    if status.exit_code == 255 && !stage.handler.is_bulkhead() {
        return skip("containerd 1.7 and later reaps runc's shim, whose Pids is empty by then");
    }
    ensure!(status.exit_code == 23, "exit code {}", status.exit_code);
    ensure!(pod.is_ready()?, "the Pod went with its container");
    Ok(())
}

/// The shim's working folder is the bundle of the Pod's sandbox.
fn shim_of(stage: &Stage, pod: &str) -> Result<i32> {
    let bundle = stage.node.bundles("k8s.io").join(pod);
    for (pid, line) in traces::processes(stage.node.place()) {
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let program = line.split(' ').nth(1).unwrap_or_default();
        let is_shim = Path::new(program)
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim-"));
        if is_shim && (cwd == bundle || line.contains(pod)) {
            return Ok(pid);
        }
    }
    bail!("no shim with working folder {}", bundle.display())
}

fn shim_killed(stage: &Stage) -> Result<()> {
    if !stage.handler.is_bulkhead() && stage.node.version == Version::V21 {
        return skip("containerd 2 leaves a Pod's members running when its own shim dies");
    }
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let shim = shim_of(stage, &pod.id)?;
    kill(Pid::from_raw(shim), Signal::SIGKILL).context("kill the shim")?;
    container.exited_within(Duration::from_secs(15)).context("the container's exit")?;
    until(
        "the Pod is not ready",
        Duration::from_secs(15),
        || Ok((!pod.is_ready()?).then_some(())),
    )?;
    if !stage.handler.is_bulkhead() {
        // containerd's own shim leaves its socket behind when it dies so; ours must not.
        let _ = std::fs::remove_file(stage.node.shim_socket("k8s.io", &pod.id));
    }
    // No process of the Pod may survive.
    until("no process of the Pod", Duration::from_secs(10), || {
        let all = traces::processes(stage.node.place());
        let of_pod = |line: &String| line.contains(&pod.id) || line.contains(&container.id);
        let in_group = |pid: &i32| {
            let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            group.contains(pod.cgroup())
        };
        Ok((!all.iter().any(|(pid, line)| of_pod(line) || in_group(pid))).then_some(()))
    })
}
