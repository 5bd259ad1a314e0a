//! `runsc` by itself, without a containerd or a shim.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::stats::Samples;
use crate::bed::process::Run;
use crate::client::shim::spec;
use crate::client::stage::Stage;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bundle of the kind that a shim is given, and the runsc that runs it.
#[derive(Debug)]
struct Bundle {
    runsc: PathBuf,
    root: PathBuf,
    dir: PathBuf,
    id: String,
}

/// Adds the times of one container's commands to `into`, in milliseconds.
pub(super) fn measure(stage: &Stage, into: &mut Samples) -> Result<()> {
    let bundle = Bundle::new(stage)?;
    // As in a shim: processes that outlive runsc become children of this process.
    set_child_subreaper(true)?;
    let life = bundle.life(stage.handler.name(), into);
    set_child_subreaper(false)?;
    if life.is_err() {
        // The first error is returned, not that of the clean-up.
        let _ = bundle.time("delete", &["--force"], &[]);
    }
    fs::remove_dir_all(&bundle.dir).with_context(|| format!("remove {}", bundle.dir.display()))?;
    life
}

impl Bundle {
    fn new(stage: &Stage) -> Result<Self> {
        let runsc = stage.node.runtime(stage.handler).context("no runsc")?.to_owned();
        let id = format!("{}-{}", stage.node.place().id(), stage.unique());
        let base = stage.node.run().join("bare");
        let bundle = Self { runsc, root: base.join("root"), dir: base.join(&id), id };
        let bin = bundle.dir.join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(bundle.dir.join("rootfs/proc"))?;
        fs::copy(stage.node.busybox(), bin.join("busybox"))?;
        for applet in ["sh", "sleep", "true"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet))?;
        }
        let config = spec(stage, &bundle.id, "exec sleep 100000").to_string();
        fs::write(bundle.dir.join("config.json"), config)?;
        Ok(bundle)
    }

    fn life(&self, column: &'static str, into: &mut Samples) -> Result<()> {
        let others = children();
        let dir = flag("--bundle", &self.dir);
        let pid = flag("--pid-file", &self.dir.join("pid"));
        into.add("runsc create", column, self.time("create", &[&dir, &pid], &[])?);
        into.add("runsc start", column, self.time("start", &[], &[])?);
        into.add("runsc exec true", column, self.time("exec", &[], &["/bin/true"])?);
        let orphans: Vec<Pid> = children().difference(&others).copied().collect();
        let begun = Instant::now();
        self.time("kill", &[], &["KILL"])?;
        reap(&orphans, begun)?;
        into.add("runsc kill, to its end", column, millis(begun.elapsed()));
        into.add("runsc delete", column, self.time("delete", &["--force"], &[])?);
        Ok(())
    }

    /// Runs `runsc VERB BEFORE ID AFTER` with Bulkhead's flags apart from the network; returns
    /// milliseconds.
    fn time(&self, verb: &str, before: &[&str], after: &[&str]) -> Result<f64> {
        let log = self.dir.join("words");
        let run = Run::new(&self.runsc).arg(flag("--root", &self.root)).args(FLAGS).arg(verb);
        let run = run.args(before).arg(&self.id).args(after);
        let line = run.line();
        // No pipes: the sandbox inherits all three and would hold them open.
        let begun = Instant::now();
        let mut child = run.spawn(Stdio::null(), Stdio::null(), fs::File::create(&log)?.into())?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let status = child.wait();
            let _ = sender.send((status, begun.elapsed()));
        });
        let Ok((status, took)) = receiver.recv_timeout(PATIENCE) else {
            let _ = kill(pid, Signal::SIGKILL);
            bail!("{line}: killed after {PATIENCE:?}");
        };
        let status = status?;
        if !status.success() {
            bail!("{line}: {status}: {}", fs::read_to_string(&log)?.trim());
        }
        Ok(millis(took))
    }
}

/// The flags by Bulkhead's defaults and the bed's handler file.
const FLAGS: [&str; 8] = [
    "--ignore-cgroups=true",
    "--platform=systrap",
    "--network=none",
    "--overlay2=root:self",
    "--file-access=exclusive",
    "--host-uds=none",
    "--directfs=true",
    "--oci-seccomp=false",
];

fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// The children of this process.
fn children() -> BTreeSet<Pid> {
    let own = std::process::id().to_string();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let mine = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(own.as_str())
    };
    pids.filter(mine).map(Pid::from_raw).collect()
}

/// Reaps each of `orphans`, as runsc's `delete` waits until they are reaped.
fn reap(orphans: &[Pid], begun: Instant) -> Result<()> {
    for orphan in orphans {
        while waitpid(*orphan, Some(WaitPidFlag::WNOHANG))? == WaitStatus::StillAlive {
            if begun.elapsed() > PATIENCE {
                bail!("process {orphan} still runs {PATIENCE:?} after SIGKILL");
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    Ok(())
}
