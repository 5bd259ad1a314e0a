//! Terminals, and standard input that stays open until it is closed.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::{Case, cases};
use crate::bed::process::{Run, kill_group, patience, until, wait};
use crate::client::pod::{Pod, shell};
use crate::client::stage::Stage;
use crate::client::task::Task;
use crate::client::terminal::Terminal;

pub(super) const CASES: &[Case] = cases![
    exec_with_a_terminal,
    run_with_a_terminal,
    stdin_until_close,
    exec_stdin_until_close,
    attach_sees_output,
];

fn type_and_resize(terminal: &mut Terminal) -> Result<()> {
    terminal.expect("#")?;
    terminal.send("test -t 0 -a -t 1 -a -t 2 && echo a ter''minal\n")?;
    terminal.expect("a terminal")?;
    // Each size travels through ctr, containerd and the shim on its own time.
    let wait_for = |size: &str, word: &str| {
        format!("until [ \"$(stty size 2>/dev/null)\" = '{size}' ]; do sleep 0.1; done; {word}\n")
    };
    terminal.send(&wait_for("31 97", "echo sm''all"))?;
    terminal.expect("small")?;
    terminal.resize(43, 121)?;
    terminal.send(&wait_for("43 121", "echo bi''gger"))?;
    terminal.expect("bigger")?;
    terminal.send("echo sl''eeps; sleep 100\n")?;
    terminal.expect("sleeps")?;
    terminal.send("\u{3}")?;
    terminal.send("echo in''terrupted; exit 5\n")?;
    terminal.expect("interrupted")
}

fn exec_with_a_terminal(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let exec = stage.node.ctr("k8s.io").args(["tasks", "exec", "--tty", "--exec-id", "t1"]);
    let mut terminal = Terminal::start(&exec.args([&container.id, "sh"]), 31, 97)?;
    type_and_resize(&mut terminal)?;
    let code = terminal.end()?;
    ensure!(code == 5, "exit code {code}");
    Ok(())
}

fn run_with_a_terminal(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    let mut terminal = Terminal::start(&task.run(&["--rm", "--tty"], &["sh"]), 31, 97)?;
    type_and_resize(&mut terminal)?;
    let code = terminal.end()?;
    ensure!(code == 5, "exit code {code}");
    Ok(())
}

/// `cat` answers each line while its input is open, and exits when it is closed.
fn echoes_until_closed(run: Run) -> Result<()> {
    let mut child = run.spawn(Stdio::piped(), Stdio::piped(), Stdio::piped())?;
    let mut input = child.stdin.take().context("no stdin")?;
    let mut output = BufReader::new(child.stdout.take().context("no stdout")?);
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while output.read_line(&mut line).is_ok_and(|n| n > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let talk = (|| -> Result<()> {
        for word in ["one", "two"] {
            writeln!(input, "{word}")?;
            let echo = lines.recv_timeout(patience(Duration::from_secs(20))).context("no echo")?;
            ensure!(echo == format!("{word}\n"), "echo {echo:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
        ensure!(child.try_wait()?.is_none(), "exited while its input was open");
        drop(input);
        let status =
            wait(&mut child, Duration::from_secs(20))?.context("still runs after close")?;
        ensure!(status.success(), "{status}");
        Ok(())
    })();
    if talk.is_err() {
        kill_group(&mut child);
    }
    talk
}

fn stdin_until_close(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    echoes_until_closed(task.run(&["--rm"], &["cat"]))
}

fn exec_stdin_until_close(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let exec = stage.node.ctr("k8s.io").args(["tasks", "exec", "--exec-id", "t1"]);
    echoes_until_closed(exec.args([&container.id, "cat"]))
}

fn attach_sees_output(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("while read word; do echo got $word; done; echo closed");
    config.stdin = true;
    config.stdin_once = true;
    let container = pod.start("reader", config)?;
    let attach = stage.node.ctr("k8s.io").args(["tasks", "attach"]).arg(&container.id);
    let mut child = attach.spawn(Stdio::piped(), Stdio::piped(), Stdio::null())?;
    let mut input = child.stdin.take().context("no stdin")?;
    let output = BufReader::new(child.stdout.take().context("no stdout")?);
    // CRI's logger and ctr read the same fifo: the answer comes to one of them.
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let answered = || -> Result<Option<()>> {
        let logged = container.log()?.iter().any(|line| line.text == "got word");
        Ok((logged || lines.try_iter().any(|line| line == "got word")).then_some(()))
    };
    let talk = writeln!(input, "word")
        .context("write to attach")
        .and_then(|()| until("an answer", Duration::from_secs(20), answered))
        .and_then(|()| {
            ensure!(container.is_running()?, "exited while its input was open");
            Ok(())
        });
    drop(input);
    kill_group(&mut child);
    talk
}
