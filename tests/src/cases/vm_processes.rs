//! The host processes of a Pod's VM, to be signalled.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::traces;
use crate::client::pod::Pod;
use crate::client::stage::{Stage, skip};

/// The host programs of a Pod's VM.
pub(super) fn programs(stage: &Stage) -> Result<Vec<String>> {
    if !stage.handler.is_vm() {
        return skip("it runs no VM");
    }
    let vmm = stage.node.runtime(stage.handler).context("no VMM")?;
    let vmm = vmm.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut all = vec![vmm, "virtiofsd".to_owned()];
    if all[0].starts_with("qemu") {
        all.push("vhost-device-vsock".to_owned());
    }
    Ok(all)
}

/// The bed's processes of `program` whose command line or cgroup contains `pod`; all if empty.
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

pub(super) fn signal_all(
    stage: &Stage,
    program: &str,
    pod: &Pod<'_>,
    signal: Signal,
) -> Result<()> {
    let pids = pids(stage, program, pod);
    ensure!(!pids.is_empty(), "no {program} runs for the Pod");
    for pid in pids {
        // virtiofsd may be two processes, of which one takes the other along.
        let _ = kill(Pid::from_raw(pid), signal);
    }
    Ok(())
}

/// A thread that waits for processes of a program and kills them; dropping it stops the wait.
pub(super) struct Killer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u32>>,
}

impl Killer {
    /// Waits for the first process of `program`, and after `delay` kills all.
    pub(super) fn start(stage: &Stage, program: &str, delay: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let node = Arc::clone(&stage.node);
        let program = program.to_owned();
        let thread = std::thread::spawn(move || {
            let mut killed = 0;
            while killed == 0 && !asked.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
                for (pid, line) in traces::processes(node.place()) {
                    let name = line.split(' ').nth(1).unwrap_or_default();
                    // Not the short-lived `start` and `delete`, nor a query for the options.
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

    /// Stops the wait; returns how many were killed.
    pub(super) fn stop(&mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop();
    }
}
