//! Processes added to a container.

use std::fs;
use std::io::Write;
use std::time::Duration;

use sandbox_core::{Kind, StdioPaths, TerminalSize};

use crate::bed::{Bed, SOON, ended, join, running, stop, until};

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn execs_exit_with_their_own_status() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    for (script, status) in [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)] {
        let (exit, text) = bed.exec(&pause, &["sh", "-c", &format!("echo hi; {script}")]).await;
        assert_eq!((exit.status, text.as_str()), (status, "hi\n"), "{script}");
    }
    let (_, text) = bed.exec(&pause, &["sh", "-c", "id; pwd; echo $PATH"]).await;
    assert_eq!(text, "uid=0 gid=0\n/\n/bin\n");
    let (exit, _) = bed.exec(&pause, &["echo", "--detach"]).await;
    assert_eq!(exit.status, 0);

    let request = bed.exec_request("x", &["nope"], StdioPaths::default());
    let error = pause.exec(request).await.unwrap().start(|| {}).await.unwrap_err();
    assert!(error.to_string().contains("\"nope\""), "{error}");
    let error = pause.exec(bed.exec_request("y", &[], StdioPaths::default())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let late = pause.exec(bed.exec_request("z", &["true"], StdioPaths::default())).await.unwrap();
    sandbox.stop().await.unwrap();
    let error = late.start(|| {}).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    pause.delete().await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn execs_are_counted_and_signalled() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let request = bed.exec_request("my-detach-1", &["sleep", "1000"], StdioPaths::default());
    let exec = pause.exec(request).await.unwrap();
    exec.start(|| {}).await.unwrap();
    assert_eq!(exec.start(|| {}).await.unwrap_err().kind(), Kind::FailedPrecondition);
    assert_eq!(pause.container.stats().await.unwrap().pids, Some(2));
    exec.kill(15, false).await.unwrap();
    assert_eq!(ended(&exec).await.status, 143);
    assert_eq!(exec.kill(15, false).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(pause.container.stats().await.unwrap().pids, Some(1));

    // An exec exits with its Pod.
    let request = bed.exec_request("last", &["sleep", "1000"], StdioPaths::default());
    let exec = pause.exec(request).await.unwrap();
    exec.start(|| {}).await.unwrap();
    stop(&sandbox, [&pause]).await;
    assert_eq!(ended(&exec).await.status, 137);
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn an_exec_in_a_container_that_does_not_run_is_refused() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let member = join(&sandbox, bed.script("m", "exit 3")).await.unwrap();
    let request = || bed.exec_request("x", &["true"], StdioPaths::default());
    let error = member.exec(request()).await.unwrap().start(|| {}).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    member.start().await;
    assert_eq!(ended(&member.init).await.status, 3);
    let error = member.exec(request()).await.unwrap().start(|| {}).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::FailedPrecondition | Kind::NotFound), "{error:?}");
    stop(&sandbox, [&pause, &member]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn standard_input_stays_open_until_it_is_closed() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let (mut stdio, log) = bed.log("log");
    let path = bed.empty_fifo("in");
    stdio.stdin = Some(path.clone());
    let exec = pause.exec(bed.exec_request("x", &["cat"], stdio)).await.unwrap();
    exec.start(|| {}).await.unwrap();
    let mut client = fs::File::options().write(true).open(&path).unwrap();
    client.write_all(b"one\n").unwrap();
    until("echo", || fs::read_to_string(&log).is_ok_and(|text| text == "one\n")).await;
    drop(client);
    let early = tokio::time::timeout(Duration::from_millis(300), exec.exited()).await;
    assert!(early.is_err(), "a client may come back");
    let mut client = fs::File::options().write(true).open(&path).unwrap();
    client.write_all(b"two\n").unwrap();
    drop(client);
    exec.close_stdin().await.unwrap();
    assert_eq!(ended(&exec).await.status, 0);
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    stop(&sandbox, [&pause]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn standard_input_that_was_closed_early_is_read_to_its_end() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    for at in ["exec", "member", "first"] {
        let (mut stdio, log) = bed.log(&format!("{at}.log"));
        let path = bed.empty_fifo(&format!("{at}.in"));
        stdio.stdin = Some(path.clone());
        // As a client that holds its end until the process runs.
        let mut client = fs::File::options().read(true).write(true).open(&path).unwrap();
        client.write_all(b"early\n").unwrap();
        let mut own = None;
        let process = if at == "exec" {
            pause.exec(bed.exec_request("x", &["cat"], stdio)).await.unwrap()
        } else {
            let mut request = bed.script(at, "cat");
            request.stdio = stdio;
            let (home, task) = match at {
                "member" => (None, join(&sandbox, request).await.unwrap()),
                _ => {
                    let (home, task) = bed.launch(request).await.unwrap();
                    (Some(home), task)
                }
            };
            let init = task.init.clone();
            own = Some((task, home));
            init
        };
        process.close_stdin().await.unwrap();
        process.start(|| {}).await.unwrap();
        drop(client);
        assert_eq!(ended(&process).await.status, 0, "{at}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "early\n", "{at}");
        if let Some((task, _)) = own {
            task.delete().await;
        }
    }
    stop(&sandbox, [&pause]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn output_waits_for_a_reader_after_the_exit() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let path = bed.empty_fifo("out");
    let stdio = StdioPaths { stdout: Some(path.clone()), ..StdioPaths::default() };
    let exec = pause.exec(bed.exec_request("x", &["echo", "late"], stdio)).await.unwrap();
    exec.start(|| {}).await.unwrap();
    assert_eq!(ended(&exec).await.status, 0);
    // Longer than it takes the tasks of an exited process to be dropped.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let read = tokio::task::spawn_blocking(move || fs::read_to_string(path).unwrap());
    let text = tokio::time::timeout(SOON, read).await.expect("the output is lost").unwrap();
    assert_eq!(text, "late\n");
    stop(&sandbox, [&pause]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn terminals_work_and_resize() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let script = "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.05; done";
    for at in ["exec", "init"] {
        let out = bed.dir.path().join(format!("{at}.out"));
        fs::write(&out, "").unwrap();
        let stdio = StdioPaths {
            stdout: Some(out.to_str().unwrap().to_owned()),
            terminal: true,
            ..StdioPaths::default()
        };
        let (process, own) = if at == "exec" {
            let request = bed.exec_request("tty", &["sh", "-c", script], stdio);
            (pause.exec(request).await.unwrap(), None)
        } else {
            let mut request = bed.script("m", script);
            request.stdio = stdio;
            let task = join(&sandbox, request).await.unwrap();
            (task.init.clone(), Some(task))
        };
        process.resize(TerminalSize { width: 80, height: 24 }).await.unwrap();
        process.start(|| {}).await.unwrap();
        until("first size", || fs::read_to_string(&out).unwrap().contains("24 80")).await;
        process.resize(TerminalSize { width: 101, height: 33 }).await.unwrap();
        assert_eq!(ended(&process).await.status, 5, "{at}");
        assert!(fs::read_to_string(&out).unwrap().contains("33 101"), "{at}");
        if let Some(task) = own {
            task.delete().await;
        }
    }
    stop(&sandbox, [&pause]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn typed_signals_reach_the_guest() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done";
    for at in ["exec", "member", "first"] {
        let out = bed.dir.path().join(format!("{at}.out"));
        fs::write(&out, "").unwrap();
        let stdio = StdioPaths {
            stdin: Some(bed.empty_fifo(&format!("{at}.in"))),
            stdout: Some(out.to_str().unwrap().to_owned()),
            terminal: true,
            ..StdioPaths::default()
        };
        let typist = stdio.stdin.clone().unwrap();
        let mut own = None;
        let process = if at == "exec" {
            let request = bed.exec_request("tty", &["sh", "-c", script], stdio);
            pause.exec(request).await.unwrap()
        } else {
            let mut request = bed.script(at, script);
            request.stdio = stdio;
            let (home, task) = match at {
                "member" => (None, join(&sandbox, request).await.unwrap()),
                _ => {
                    let (home, task) = bed.launch(request).await.unwrap();
                    (Some(home), task)
                }
            };
            let init = task.init.clone();
            own = Some((task, home));
            init
        };
        process.start(|| {}).await.unwrap();
        until("the trap", || fs::read_to_string(&out).unwrap().contains("ready")).await;
        fs::File::options().write(true).open(typist).unwrap().write_all(b"\x03").unwrap();
        assert_eq!(ended(&process).await.status, 5, "{at}");
        assert!(fs::read_to_string(&out).unwrap().contains("caught"), "{at}");
        if let Some((task, _)) = own {
            task.delete().await;
        }
    }
    stop(&sandbox, [&pause]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_paused_sandbox_refuses_and_thaws() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let member = running(&sandbox, bed.script("m", "sleep 1000")).await;
    member.container.pause().await.unwrap();
    let request = bed.exec_request("x", &["true"], StdioPaths::default());
    let error = pause.exec(request).await.unwrap().start(|| {}).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("paused"), "{error}");
    assert!(member.container.stats().await.is_ok(), "a look does no harm");
    member.container.resume().await.unwrap();
    member.container.resume().await.unwrap();
    assert_eq!(bed.exec(&member, &["true"]).await.0.status, 0);
    member.container.pause().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(ended(&member.init).await.status, 137);
    stop(&sandbox, [&member, &pause]).await;
    bed.assert_clean();
}
