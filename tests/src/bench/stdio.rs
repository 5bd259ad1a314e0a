//! The throughput of a container's output through `ctr run`.

use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bed::handler::Handler;
use crate::bed::process::{kill_group, wait};
use crate::client::stage::Stage;
use crate::client::task::Task;

/// How much a container writes, in MiB.
const MEBIBYTES: u64 = 512;

/// How long that may take, the container's start included.
const PATIENCE: Duration = Duration::from_secs(120);

/// A container writes to a pipe that is read at once; returns MB (10^6 bytes) per second from the
/// first byte to the last.
pub(super) fn measure(stage: &Stage) -> Result<f64> {
    let task = Task::new(stage);
    let mut flags = vec!["--rm".to_owned()];
    if stage.handler == Handler::GvisorGo {
        // Without them gVisor's own shim waits for a sandbox that is never created.
        for (key, value) in [("container-type", "sandbox"), ("sandbox-id", task.id.as_str())] {
            flags.extend(["--annotation".to_owned(), format!("io.kubernetes.cri.{key}={value}")]);
        }
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let count = format!("count={MEBIBYTES}");
    let words = ["dd", "if=/dev/zero", "bs=1M", &count];
    let run = task.run(&flags, &words);
    let mut child = run.spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
    let out = child.stdout.take().context("no stdout")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let _ = sender.send(read(out));
    });
    let end = receiver.recv_timeout(PATIENCE);
    if wait(&mut child, Duration::from_secs(10))?.is_none() {
        kill_group(&mut child);
    }
    let (bytes, took) = end.map_err(|_| anyhow!("output still came after {PATIENCE:?}"))??;
    ensure!(bytes == MEBIBYTES << 20, "{bytes} bytes came of {}", MEBIBYTES << 20);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let megabytes = bytes as f64 / 1e6;
    Ok(megabytes / took.as_secs_f64())
}

fn read(mut out: impl Read) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = out.read(&mut buffer)? as u64;
    let begun = Instant::now();
    loop {
        match out.read(&mut buffer)? {
            0 => return Ok((total, begun.elapsed())),
            length => total += length as u64,
        }
    }
}
