//! Output: whole, however fast it comes and however slowly it is read.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::case::{Case, cases};
use crate::bed::containerd::NAMESPACE;
use crate::bed::process::{kill_group, patience, until, wait};
use crate::client::pod::{Pod, shell};
use crate::client::stage::Stage;
use crate::client::task::{Events, Task};

pub(super) const CASES: &[Case] = cases![
    a_hundred_mebibytes_to_the_log,
    a_hundred_mebibytes_through_ctr,
    a_stalled_reader_blocks_nothing,
    ctr_run_tells_the_exit_code,
    events_come_in_order,
];

const LINES: usize = 100 << 10;

/// 100 MiB: each line is its number in 8 digits and 1015 letters, 1024 bytes with its end.
const FLOOD: &str = "awk 'BEGIN { p = sprintf(\"%1015s\", \"\"); gsub(/ /, \"x\", p); \
    for (i = 0; i < 102400; i++) printf \"%08d%s\\n\", i, p }'";

fn line(number: usize) -> String {
    format!("{number:08}{}", "x".repeat(1015))
}

fn a_hundred_mebibytes_to_the_log(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.start("flood", shell(&format!("exec {FLOOD}")))?;
    let status = container.exited_within(Duration::from_secs(100))?;
    ensure!(status.exit_code == 0, "exit code {}", status.exit_code);
    let expected: u64 = LINES as u64 * 1024;
    until("the whole log", Duration::from_secs(20), || {
        Ok((std::fs::metadata(container.log_path())?.len() > expected).then_some(()))
    })?;
    let lines = container.log()?;
    ensure!(lines.len() == LINES, "{} lines of {LINES}", lines.len());
    for (at, got) in lines.iter().enumerate() {
        ensure!(got.text == line(at), "line {at} is {:.40}...", got.text);
    }
    std::fs::remove_file(container.log_path())?;
    Ok(())
}

fn a_hundred_mebibytes_through_ctr(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    let run = task.run(&["--rm"], &["sh", "-c", &format!("exec {FLOOD}")]);
    let done = run.deadline(Duration::from_secs(100)).finish()?;
    ensure!(done.code() == 0, "exit code {}: {}", done.code(), done.err());
    let bytes = done.stdout.len();
    ensure!(bytes == LINES * 1024, "{bytes} bytes of {}", LINES * 1024);
    for (at, got) in done.stdout.chunks(1024).enumerate() {
        ensure!(got == format!("{}\n", line(at)).as_bytes(), "line {at} is not whole");
    }
    Ok(())
}

/// How long the reader reads nothing: 15 s, or `BULKHEAD_STALL_SECONDS`.
fn stall() -> Duration {
    let seconds = std::env::var("BULKHEAD_STALL_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

fn a_stalled_reader_blocks_nothing(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let other = pod.shell("sleep 1000")?;
    let task = Task::new(stage);
    let run = task.run(&[], &["sh", "-c", "yes & sleep 1000"]);
    let mut child = run.spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
    let mut out = child.stdout.take().context("no stdout")?;
    let check = (|| -> Result<()> {
        until("the task runs", Duration::from_secs(20), || {
            let list = task.tasks(&["ls"]).ok()?;
            Ok(list.lines().any(|l| l.starts_with(&task.id) && l.contains("RUNNING")).then_some(()))
        })?;
        let mut some = [0; 4096];
        out.read_exact(&mut some).context("no output to begin with")?;
        let end = Instant::now() + stall();
        let quick = |what: &str, begun: Instant| -> Result<()> {
            let took = begun.elapsed();
            let most = patience(Duration::from_secs(8));
            ensure!(took < most, "{what} took {took:?} beside a stalled reader");
            Ok(())
        };
        let mut round = 0;
        while Instant::now() < end {
            let begun = Instant::now();
            ensure!(other.out("echo ok")? == "ok");
            quick("exec in another container", begun)?;
            let begun = Instant::now();
            let id = format!("x{round}");
            let exec = task.tasks(&["exec", "--exec-id", &id, &task.id, "echo", "ok"]).ok()?;
            ensure!(exec == "ok\n", "exec in the stalled container: {exec:?}");
            quick("exec in the stalled container", begun)?;
            let begun = Instant::now();
            let list = task.tasks(&["ls"]).ok()?;
            ensure!(list.contains("RUNNING"), "tasks: {list}");
            quick("state", begun)?;
            round += 1;
            std::thread::sleep(Duration::from_secs(1));
        }
        let begun = Instant::now();
        task.tasks(&["kill", "--signal", "SIGKILL", &task.id]).ok()?;
        until("the stalled container has stopped", Duration::from_secs(8), || {
            let list = task.tasks(&["ls"]).ok()?;
            let line = list.lines().find(|line| line.starts_with(&task.id));
            Ok(line.is_none_or(|line| line.contains("STOPPED")).then_some(()))
        })?;
        quick("kill", begun)
    })();
    drop(out);
    if wait(&mut child, Duration::from_secs(5))?.is_none() {
        kill_group(&mut child);
    }
    check
}

fn ctr_run_tells_the_exit_code(stage: &Stage) -> Result<()> {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        let task = Task::new(stage);
        let done = task.run(&["--rm"], &["sh", "-c", script]).finish()?;
        ensure!(done.code() == code, "{script:?}: exit code {}: {}", done.code(), done.err());
    }
    for (signal, code) in [("SIGKILL", 137), ("SIGTERM", 143)] {
        let task = Task::new(stage);
        let script = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done";
        let run = task.run(&["--rm"], &["sh", "-c", script]);
        let mut child = run.spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
        let output = child.stdout.take().context("no stdout")?;
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        // Before the trap is set the signal would kill the shell.
        let ready = lines.recv_timeout(patience(Duration::from_secs(20)));
        let killed = ready
            .context("the task does not run")
            .and_then(|_| task.tasks(&["kill", "-s", signal, &task.id]).ok());
        let status = wait(&mut child, Duration::from_secs(20))?;
        kill_group(&mut child);
        killed?;
        let got = status.and_then(|status| status.code());
        ensure!(got == Some(code), "{signal}: exit code {got:?}");
    }
    Ok(())
}

fn events_come_in_order(stage: &Stage) -> Result<()> {
    let events = Events::listen(stage, NAMESPACE)?;
    let task = Task::new(stage);
    task.run(&["--detach"], &["sleep", "1000"]).ok()?;
    task.tasks(&["exec", "--exec-id", "x1", &task.id, "true"]).ok()?;
    task.tasks(&["kill", "--signal", "SIGKILL", &task.id]).ok()?;
    let seen = events.until(&task.id, "/tasks/exit", 2)?;
    let kinds: Vec<&str> = seen.iter().map(|t| t.trim_start_matches("/tasks/")).collect();
    let expected = ["create", "start", "exec-added", "exec-started", "exit", "exit"];
    ensure!(kinds == expected, "{kinds:?}");
    task.tasks(&["rm", &task.id]).finish()?;
    if stage.handler.is_bulkhead() {
        // containerd 2's own shim may exit before it has published the delete.
        let last = events.until(&task.id, "/tasks/delete", 1)?;
        ensure!(last == ["/tasks/delete"], "after the exit: {last:?}");
    }
    quick_exit_keeps_order(stage, &events)
}

/// The start of a process that exits at once comes before its exit.
fn quick_exit_keeps_order(stage: &Stage, events: &Events) -> Result<()> {
    for _ in 0..3 {
        let task = Task::new(stage);
        let _ = task.run(&["--rm"], &["true"]).finish()?;
        let expected = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
        // As above: without the delete.
        let count = if stage.handler.is_bulkhead() { 4 } else { 3 };
        let expected = &expected[..count];
        let seen = events.until(&task.id, expected[count - 1], 1)?;
        ensure!(seen == expected, "{seen:?}");
    }
    Ok(())
}
