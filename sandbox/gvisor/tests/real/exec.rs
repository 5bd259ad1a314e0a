//! Processes added to a container.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::{Kind, StdioPaths};

use crate::bed::{Bed, ended, until};

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn execs_end_with_their_own_status() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    for (script, status) in [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)] {
        let (exit, text) = bed.exec(&*pause, &["sh", "-c", &format!("echo hi; {script}")]).await;
        assert_eq!((exit.status, text.as_str()), (status, "hi\n"), "{script}");
    }
    let (_, text) = bed.exec(&*pause, &["sh", "-c", "id; pwd; echo $PATH"]).await;
    assert_eq!(text, "uid=0 gid=0\n/\n/bin\n");
    let (exit, _) = bed.exec(&*pause, &["echo", "--detach"]).await;
    assert_eq!(exit.status, 0);

    let request = bed.exec_request("x", &["nope"], StdioPaths::default());
    let error = pause.exec(request).await.unwrap().start().await.unwrap_err();
    assert!(error.to_string().contains("\"nope\""), "{error}");
    let error = pause.exec(bed.exec_request("y", &[], StdioPaths::default())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    sandbox.stop().await.unwrap();
    let error = pause.exec(bed.exec_request("z", &["true"], StdioPaths::default())).await;
    assert_ne!(error.unwrap_err().kind(), Kind::Internal);
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn execs_are_told_apart_and_signalled() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let request = bed.exec_request("my-detach-1", &["sleep", "1000"], StdioPaths::default());
    let exec = pause.exec(request).await.unwrap();
    assert_eq!(exec.signal(15, false).await.unwrap_err().kind(), Kind::FailedPrecondition);
    exec.start().await.unwrap();
    assert_eq!(exec.start().await.unwrap_err().kind(), Kind::FailedPrecondition);
    let pids = pause.pids().await.unwrap();
    let ids: Vec<_> = pids.iter().filter_map(|p| p.exec_id.as_deref()).collect();
    assert_eq!(ids, ["my-detach-1"]);
    assert_eq!(pids.len(), 2);
    exec.signal(15, false).await.unwrap();
    assert_eq!(ended(&*exec).await.status, 143);
    assert_eq!(exec.signal(15, false).await.unwrap_err().kind(), Kind::NotFound);

    // A Pod's end is an exec's end.
    let request = bed.exec_request("last", &["sleep", "1000"], StdioPaths::default());
    let exec = pause.exec(request).await.unwrap();
    exec.start().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(ended(&*exec).await.status, 137);
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
    exec.start().await.unwrap();
    let mut client = fs::File::options().write(true).open(&path).unwrap();
    client.write_all(b"one\n").unwrap();
    until("echo", || fs::read_to_string(&log).is_ok_and(|text| text == "one\n")).await;
    drop(client);
    let early = tokio::time::timeout(Duration::from_millis(300), exec.wait()).await;
    assert!(early.is_err(), "a client may come back");
    let mut client = fs::File::options().write(true).open(&path).unwrap();
    client.write_all(b"two\n").unwrap();
    drop(client);
    exec.close_stdin().await.unwrap();
    assert_eq!(ended(&*exec).await.status, 0);
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    sandbox.stop().await.unwrap();
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
        let (process, container) = if at == "exec" {
            let request = bed.exec_request("tty", &["sh", "-c", script], stdio);
            (pause.exec(request).await.unwrap(), None)
        } else {
            let mut request = bed.member("m", script);
            request.stdio = stdio;
            let container = sandbox.create(request).await.unwrap();
            (container.init(), Some(container))
        };
        process.resize(80, 24).await.unwrap();
        process.start().await.unwrap();
        until("first size", || fs::read_to_string(&out).unwrap().contains("24 80")).await;
        process.resize(101, 33).await.unwrap();
        assert_eq!(ended(&*process).await.status, 5, "{at}");
        assert!(fs::read_to_string(&out).unwrap().contains("33 101"), "{at}");
        if let Some(container) = container {
            container.delete().await.unwrap();
        }
    }
    sandbox.stop().await.unwrap();
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
            let member = at == "member";
            let mut request = if member { bed.member("m", script) } else { bed.alone("c", script) };
            request.stdio = stdio;
            let home = if member { Arc::clone(&sandbox) } else { bed.sandbox().await };
            let container = home.create(request).await.unwrap();
            let init = container.init();
            own = Some((container, home));
            init
        };
        process.start().await.unwrap();
        until("the trap", || fs::read_to_string(&out).unwrap().contains("ready")).await;
        fs::File::options().write(true).open(typist).unwrap().write_all(b"\x03").unwrap();
        assert_eq!(ended(&*process).await.status, 5, "{at}");
        assert!(fs::read_to_string(&out).unwrap().contains("caught"), "{at}");
        if let Some((container, _)) = own {
            container.delete().await.unwrap();
        }
    }
    sandbox.stop().await.unwrap();
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_paused_sandbox_refuses_and_thaws() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let container = sandbox.create(bed.member("m", "sleep 1000")).await.unwrap();
    let early = container.pause().await.unwrap_err();
    assert_eq!(early.kind(), Kind::FailedPrecondition, "{early}");
    container.init().start().await.unwrap();
    container.pause().await.unwrap();
    let request = bed.exec_request("x", &["true"], StdioPaths::default());
    let error = pause.exec(request).await.unwrap().start().await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("paused"), "{error}");
    assert!(container.stats().await.is_ok(), "a look does no harm");
    container.resume().await.unwrap();
    container.resume().await.unwrap();
    assert_eq!(bed.exec(&*container, &["true"]).await.0.status, 0);
    container.pause().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(ended(&*container.init()).await.status, 137);
    bed.assert_clean();
}
