//! `runsc` by itself, without a containerd or a shim: what the programs below cost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
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

/// The commands of one life go to `into`, in milliseconds.
pub(super) fn measure(stage: &Stage, into: &mut Samples) -> Result<()> {
    let bundle = Bundle::new(stage)?;
    let life = bundle.life(stage.handler.name(), into);
    if life.is_err() {
        // The error is told; that there is nothing to delete any more is not one.
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
        let pid_file = self.dir.join("pid");
        let (dir, pid) = (flag("--bundle", &self.dir), flag("--pid-file", &pid_file));
        into.add("runsc create", column, self.time("create", &[&dir, &pid], &[])?);
        into.add("runsc start", column, self.time("start", &[], &[])?);
        into.add("runsc exec true", column, self.time("exec", &[], &["/bin/true"])?);
        let pid = fs::read_to_string(&pid_file)?.trim().parse().context("pid file")?;
        let begun = Instant::now();
        self.time("kill", &[], &["KILL"])?;
        gone(Pid::from_raw(pid), begun)?;
        into.add("runsc kill, to its end", column, millis(begun.elapsed()));
        into.add("runsc delete", column, self.time("delete", &["--force"], &[])?);
        Ok(())
    }

    /// Runs `runsc VERB BEFORE ID AFTER` with the flags that Bulkhead gives it, apart from the
    /// network; gives milliseconds.
    fn time(&self, verb: &str, before: &[&str], after: &[&str]) -> Result<f64> {
        let log = self.dir.join("words");
        let run = Run::new(&self.runsc).arg(flag("--root", &self.root)).args(FLAGS).arg(verb);
        let run = run.args(before).arg(&self.id).args(after);
        let line = run.line();
        // A sandbox inherits all three: pipes would be held open by it.
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
            bail!("{line}: no end after {PATIENCE:?}, killed");
        };
        let status = status?;
        if !status.success() {
            bail!("{line}: {status}: {}", fs::read_to_string(&log)?.trim());
        }
        Ok(millis(took))
    }
}

/// As Bulkhead's defaults and the bed's handler file give them.
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

/// Waits for the end of a process that is not a child.
fn gone(pid: Pid, begun: Instant) -> Result<()> {
    let stat = format!("/proc/{pid}/stat");
    let dead = |text: &str| text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    while fs::read_to_string(&stat).is_ok_and(|text| !dead(&text)) {
        if begun.elapsed() > PATIENCE {
            bail!("process {pid} still runs {PATIENCE:?} after SIGKILL");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}
