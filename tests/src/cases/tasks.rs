//! Containers without a Pod: `ctr run`, and every verb that `ctr tasks` has.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::{Case, cases};
use crate::bed::containerd::NAMESPACE;
use crate::bed::handler::{self, Handler};
use crate::bed::image;
use crate::bed::process::{kill_group, patience, until};
use crate::bed::version::Version;
use crate::client::stage::{Stage, skip};
use crate::client::task::Task;

pub(super) const CASES: &[Case] = cases![
    ctr_verbs,
    ctr_processes,
    ctr_attach,
    ctr_run_keeps_to_its_flags,
    an_id_that_begins_another,
    a_shims_name_chooses_the_handler,
    root_on_a_disk,
    ctr_checkpoint,
];

/// Counts, and exits with 9 on SIGTERM.
const COUNTER: &str =
    "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; echo $i >/tmp/at; sleep 0.1; done";

/// The state of a task by `ctr tasks ls`; `None` when there is no such task.
fn state(task: &Task) -> Result<Option<String>> {
    let list = task.tasks(&["ls"]).ok()?;
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(&task.id));
    Ok(line.and_then(|line| line.split_whitespace().last().map(str::to_owned)))
}

fn ensure_state(task: &Task, wanted: &str) -> Result<()> {
    let state = state(task)?;
    ensure!(state.as_deref() == Some(wanted), "{state:?}, not {wanted}");
    Ok(())
}

fn ctr_verbs(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    task.run(&["--detach"], &["sh", "-c", COUNTER]).ok()?;
    ensure_state(&task, "RUNNING")?;
    let exec = |words: &[&str]| {
        let id = format!("x{}", stage.unique());
        task.tasks(&["exec", "--exec-id", &id, "--cwd", "/tmp", &task.id]).args(words).finish()
    };
    let done = exec(&["sh", "-c", "pwd; echo oops >&2; exit 5"])?;
    let result = (done.code(), done.out(), done.err());
    let is_whole = result.0 == 5 && result.1 == "/tmp\n" && result.2.contains("oops");
    ensure!(is_whole, "{result:?}");
    let missing = exec(&["/no/such/program"])?;
    let error = missing.err();
    ensure!(missing.code() != 0 && error.contains("/no/such/program"), "{error}");

    let at = || exec(&["cat", "at"]).map(|done| done.out());
    task.tasks(&["pause", &task.id]).ok()?;
    ensure_state(&task, "PAUSED")?;
    task.tasks(&["resume", &task.id]).ok()?;
    ensure_state(&task, "RUNNING")?;
    let before = at()?;
    until("it counts again after the pause", Duration::from_secs(20), || {
        Ok((at()? != before).then_some(()))
    })?;
    let metrics = task.tasks(&["metrics", &task.id]).ok()?;
    ensure!(metrics.contains(&task.id) && metrics.contains("memory"), "{metrics}");

    // A running task cannot be removed.
    let refused = task.tasks(&["rm", &task.id]).finish()?;
    ensure!(refused.code() != 0, "a running task was removed");
    task.tasks(&["kill", "--signal", "SIGTERM", &task.id]).ok()?;
    until("the task has stopped", Duration::from_secs(20), || {
        Ok((state(&task)?.as_deref() == Some("STOPPED")).then_some(()))
    })?;
    let late = exec(&["true"])?;
    ensure!(late.code() != 0, "an exec in a stopped task ran");
    let removed = task.tasks(&["rm", &task.id]).finish()?;
    ensure!(removed.err().contains("exit code 9"), "rm: {}", removed.err());
    ensure!(state(&task)?.is_none(), "a removed task is listed");
    let again = task.tasks(&["rm", &task.id]).finish()?;
    ensure!(again.err().contains("not found"), "removed twice: {}", again.err());
    Ok(())
}

/// What `docker top` and its like look for on the host: the task's own process, and no other one's.
fn ctr_processes(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    task.run(&["--detach"], &["sh", "-c", "sleep 1000 & exec sleep 1000"]).ok()?;
    let exec = task.tasks(&["exec", "--exec-id", "listed", &task.id]).args(["sleep", "1000"]);
    let mut child = exec.spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
    let seen = until("the exec is listed", Duration::from_secs(20), || {
        let listed = task.tasks(&["ps", &task.id]).ok()?;
        Ok(listed.contains("listed").then_some(listed))
    });
    let checked = seen.and_then(|listed| {
        let all = task.tasks(&["ls"]).ok()?;
        let own = all.lines().find(|line| line.starts_with(&task.id)).context("not in ls")?;
        let own = own.split_whitespace().nth(1).context("no PID in ls")?;
        let pids: Vec<_> =
            listed.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect();
        ensure!(pids.contains(&own), "the task's {own} is not in {listed}");
        for pid in pids {
            let about =
                |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let is_its = about("cgroup").contains(&task.id) || about("cmdline").contains(&task.id);
            ensure!(is_its, "process {pid} of the host is not the task's: {listed}");
        }
        Ok(())
    });
    kill_group(&mut child);
    checked
}

/// A later attach sees the output from then on, and leaves the task running.
fn ctr_attach(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    task.run(&["--detach"], &["sh", "-c", COUNTER]).ok()?;
    let mut last = 0;
    for _ in 0..2 {
        let attach = task.tasks(&["attach", &task.id]);
        let mut child = attach.spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let seen = || -> Result<u32> {
            let mut count = last;
            for _ in 0..5 {
                let line = lines.recv_timeout(patience(Duration::from_secs(20)));
                let number = line.context("no output")?.parse()?;
                ensure!(number > count, "{number} after {count}");
                count = number;
            }
            Ok(count)
        };
        let seen = seen();
        kill_group(&mut child);
        last = seen?;
        ensure_state(&task, "RUNNING")?;
    }
    Ok(())
}

/// A link to the shim by a handler's name, given as `--runtime` without any options. The handler's
/// file is missing, since the bed writes nothing to `/etc/bulkhead`: the error names it.
fn a_shims_name_chooses_the_handler(stage: &Stage) -> Result<()> {
    if stage.handler == Handler::Runc {
        return skip("runc's shim has one name");
    }
    let task = Task::new(stage);
    let shim = handler::shim().context("the shim has not been built")?;
    let name = format!("of-{}", task.id);
    let link = stage.folder()?.join(format!("containerd-shim-bulkhead-{name}-v2"));
    std::os::unix::fs::symlink(shim, &link)?;
    let run = stage.node.ctr(NAMESPACE).args(["run", "--rm", "--runtime"]).arg(&link);
    let done = run.args([image::BUSYBOX, &task.id, "true"]).finish()?;
    let error = done.err();
    let named = format!("/etc/bulkhead/{name}.toml");
    ensure!(done.code() != 0 && error.contains(&named), "{} {error}", done.code());
    ensure!(error.contains("the name under which the shim was called"), "{error}");
    Ok(())
}

/// Runtimes that take an abbreviation for an id must not take this one for one.
fn an_id_that_begins_another(stage: &Stage) -> Result<()> {
    let short = Task::new(stage);
    let long = Task::named(stage, format!("{}0", short.id));
    for task in [&long, &short] {
        task.run(&["--detach"], &["sleep", "1000"]).ok()?;
    }
    for task in [&short, &long] {
        let exec = task.tasks(&["exec", "--exec-id", "x", &task.id]).args(["echo", &task.id]);
        let said = exec.finish()?;
        ensure!(said.out().trim() == task.id, "{:?} {:?}", said.out(), said.err());
    }
    short.tasks(&["kill", "--signal", "SIGKILL", &short.id]).ok()?;
    until("the first has stopped", Duration::from_secs(20), || {
        Ok((state(&short)?.as_deref() == Some("STOPPED")).then_some(()))
    })?;
    short.tasks(&["rm", &short.id]).finish()?;
    ensure_state(&long, "RUNNING")
}

fn ctr_run_keeps_to_its_flags(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    let dir = stage.node.lib().join(format!("flags-{}", task.id));
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("given"), "given\n")?;
    let mount = format!("type=bind,src={},dst=/given,options=rbind:ro", dir.display());
    let flags = ["--rm", "--env", "COLOUR=red", "--cwd", "/tmp", "--mount", &mount, "--read-only"];
    // containerd 1.6's ctr does not know the flag.
    let (user, more): (_, &[_]) = match stage.node.version {
        Version::V16 => ("0:0", &["--memory-limit", "100000000"]),
        _ => ("1000:2000", &["--memory-limit", "100000000", "--user", "1000:2000"]),
    };
    let script = "echo $COLOUR $(pwd) $(id -u):$(id -g) $(cat /given/given); \
        touch /given/new 2>/dev/null || echo kept; touch /new 2>/dev/null || echo kept";
    let run = task.run(&[&flags[..], more].concat(), &["sh", "-c", script]);
    let done = run.finish()?;
    let out = done.out();
    let err = done.err();
    ensure!(out == format!("red /tmp {user} given\nkept\nkept\n"), "{out:?} {err:?}");
    fs::remove_dir_all(&dir)?;
    Ok(())
}

/// The blockfile snapshotter hands over an image with a file system, not a directory.
fn root_on_a_disk(stage: &Stage) -> Result<()> {
    if stage.node.version == Version::V16 {
        return skip("the blockfile snapshotter came with containerd 1.7");
    }
    let task = Task::new(stage);
    let script = "grep ' / ' /proc/mounts; echo new >/root/new && cat /root/new; exit 3";
    let flags = ["--rm", "--snapshotter", "blockfile"];
    let done = task.run(&flags, &["sh", "-c", script]).finish()?;
    let out = done.out();
    let err = done.err();
    ensure!(done.code() == 3 && out.ends_with("new\n"), "{}: {out:?} {err:?}", done.code());
    // gVisor shows no file system of the host.
    let seen = matches!(stage.handler, Handler::Runc) || stage.handler.is_vm();
    ensure!(!seen || out.contains(" ext4 "), "the root is not on the disk: {out:?}");
    Ok(())
}

/// A checkpoint becomes an image; where a handler makes none, the error has the reason and the task
/// continues.
fn ctr_checkpoint(stage: &Stage) -> Result<()> {
    if stage.handler == Handler::Runc {
        return skip("runc wants criu for a checkpoint");
    }
    let task = Task::new(stage);
    task.run(&["--detach"], &["sh", "-c", COUNTER]).ok()?;
    let done = task.tasks(&["checkpoint", &task.id]).finish()?;
    match stage.handler {
        Handler::Gvisor | Handler::GvisorNew => {
            ensure!(done.code() == 0, "{}", done.err());
            let name = done.out().trim().to_owned();
            let images = || stage.node.ctr(NAMESPACE).args(["images", "ls", "-q"]).ok();
            ensure!(!name.is_empty() && images()?.lines().any(|line| line == name), "{name:?}");
            stage.node.ctr(NAMESPACE).args(["images", "rm", "--sync", &name]).ok()?;
        }
        Handler::KataContainers => {
            let error = done.err();
            ensure!(done.code() != 0 && error.contains("checkpoint"), "{error}");
        }
        Handler::Runc | Handler::GvisorGo => ensure!(done.code() == 0, "{}", done.err()),
    }
    let at =
        || task.tasks(&["exec", "--exec-id", &stage.unique(), &task.id, "cat", "/tmp/at"]).ok();
    let before = at()?;
    until("it counts on after the checkpoint", Duration::from_secs(20), || {
        Ok((at()? != before).then_some(()))
    })
}
