//! One Pod with one container over CRI, from start to removal, each call timed.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::boot;
use super::stats::Samples;
use crate::client::pod::{Pod, pod_config, shell};
use crate::client::stage::Stage;

/// Exits at once on SIGTERM, which process 1 ignores unless it has a handler.
const SCRIPT: &str = "trap 'exit 0' TERM; echo ready; sleep 100000 & wait";

/// How long StopContainer waits before it kills; reached only when the trap is broken.
const GRACE: i64 = 20;

/// Adds the times of the calls to `into` and the phases of a VM's boot to `boots`, in milliseconds.
pub(super) fn measure(stage: &Stage, into: &mut Samples, boots: &mut Samples) -> Result<()> {
    let column = stage.handler.name();
    let cri = &stage.cri;
    let mut clock = Clock { into, column };
    let config = pod_config(stage)?;
    let offset = stage.node.log_len();
    let pod = clock.time("RunPodSandbox", || Pod::run_config(stage, config))?;
    if stage.handler.is_vm() {
        boot::measure(stage, &pod.id, offset, boots)?;
    }
    let container = clock.time("CreateContainer", || pod.create(shell(SCRIPT)))?;
    clock.time("StartContainer", || cri.start(&container.id))?;
    container.logged("ready")?;
    let done = clock.time("ExecSync true", || cri.exec(&container.id, &["true"], 20))?;
    ensure!(done.exit_code == 0, "exec of true: {done:?}");
    clock.time("PodSandboxStatus", || cri.pod_status(&pod.id))?;
    let info = clock.time("PodSandboxStatus, verbose", || cri.pod_info(&pod.id))?;
    ensure!(!info.is_empty(), "the verbose status of a Pod is empty");
    clock.time("ContainerStats", || cri.stats(&container.id))?;
    clock.time("StopContainer", || cri.stop(&container.id, GRACE))?;
    clock.time("StopPodSandbox", || cri.stop_pod(&pod.id))?;
    clock.time("RemovePodSandbox", || cri.remove_pod(&pod.id))
}

struct Clock<'a> {
    into: &'a mut Samples,
    column: &'static str,
}

impl Clock<'_> {
    fn time<T>(&mut self, row: &'static str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let done = call()?;
        self.into.add(row, self.column, begun.elapsed().as_secs_f64() * 1000.0);
        Ok(done)
    }
}
