//! From creation to deletion.

use std::fs;

use sandbox_core::{Backend, Id, Kind, LaunchSandbox};

use crate::bed::{Bed, ended, join, running, stop, until};

const CASES: [(&str, u32); 4] =
    [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)];

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn first_processes_exit_with_their_own_status() {
    let bed = Bed::new().await;
    for (at, (script, status)) in CASES.into_iter().enumerate() {
        let mut request = bed.script(&format!("c{at}"), &format!("echo out; {script}"));
        let (stdio, log) = bed.log(&format!("c{at}.log"));
        request.stdio = stdio;
        let (sandbox, task) = bed.launch(request).await.unwrap();
        task.start().await;
        assert_eq!(ended(&task.init).await.status, status, "{script}");
        assert_eq!(sandbox.exited().await.status, status);
        assert_eq!(fs::read_to_string(log).unwrap(), "out\n");
        assert!(!task.oom_killed());
        task.delete().await;
        task.delete().await;
    }
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn members_exit_with_their_own_status() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    for (at, (script, status)) in CASES.into_iter().enumerate() {
        let mut request = bed.script(&format!("m{at}"), &format!("echo out; {script}"));
        let (stdio, log) = bed.log(&format!("m{at}.log"));
        request.stdio = stdio;
        let task = join(&sandbox, request).await.unwrap();
        assert_eq!(task.container.pid(), pause.container.pid());
        task.start().await;
        assert_eq!(ended(&task.init).await.status, status, "{script}");
        assert_eq!(fs::read_to_string(log).unwrap(), "out\n");
        task.delete().await;
    }
    let again = running(&sandbox, bed.script("m0", "exit 3")).await;
    assert_eq!(ended(&again.init).await.status, 3, "an id may come back");
    again.delete().await;
    pause.init.kill(9, false).await.unwrap();
    assert_eq!(ended(&pause.init).await.status, 137);
    pause.delete().await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn signals_reach_the_guest() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let script = "trap 'echo term; exit 42' TERM; echo ready; while :; do sleep 0.1; done";
    let mut request = bed.script("m", script);
    let (stdio, log) = bed.log("log");
    request.stdio = stdio;
    let first = running(&sandbox, request).await;
    until("ready", || fs::read_to_string(&log).is_ok_and(|text| text == "ready\n")).await;
    let refused = first.init.delete().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
    first.init.kill(15, false).await.unwrap();
    assert_eq!(ended(&first.init).await.status, 42);
    let late = first.init.kill(15, false).await.unwrap_err();
    assert_eq!(late.kind(), Kind::NotFound, "{late}");
    first.delete().await;

    let second = running(&sandbox, bed.script("n", "sleep 1000 & sleep 1000")).await;
    second.init.kill(9, true).await.unwrap();
    assert_eq!(ended(&second.init).await.status, 137);

    // Every container exits with its Pod.
    let third = running(&sandbox, bed.script("o", "sleep 1000")).await;
    pause.init.kill(9, true).await.unwrap();
    assert_eq!(ended(&third.init).await.status, 137);
    assert_eq!(ended(&pause.init).await.status, 137);
    for task in [&second, &third, &pause] {
        task.delete().await;
    }
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn what_was_created_but_never_started_can_be_killed() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let task = join(&sandbox, bed.script("m", "sleep 1")).await.unwrap();
    task.init.kill(9, false).await.unwrap();
    assert_eq!(ended(&task.init).await.status, 137);
    let late = task.init.start(|| {}).await.unwrap_err();
    assert_eq!(late.kind(), Kind::FailedPrecondition, "{late}");
    task.delete().await;
    sandbox.stop().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(ended(&pause.init).await.status, 137);
    pause.delete().await;

    let (other, root) = bed.launch(bed.script("c", "sleep 1")).await.unwrap();
    root.init.kill(15, false).await.unwrap();
    ended(&root.init).await;
    other.exited().await;
    root.delete().await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_failed_launch_leaves_nothing() {
    let bed = Bed::new().await;
    let mut spec = bed.spec(&["sh"]);
    spec["mounts"][0] = serde_json::json!({"destination": "/x", "type": "bind", "source": "/none"});
    let error = bed.launch(bed.request("c", &spec)).await.err().unwrap();
    assert!(error.to_string().contains("/none"), "{error}");
    bed.assert_clean();

    let mut bare = bed.request("b", &bed.spec(&["sh"]));
    fs::remove_dir_all(bed.bundle("b").join("rootfs")).unwrap();
    fs::write(bed.bundle("b").join("rootfs"), "no directory").unwrap();
    bare.stdio = bed.log("b.log").0;
    let error = bed.launch(bare).await.err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("b/rootfs is not a directory"), "{error}");
    bed.assert_clean();

    let request = LaunchSandbox::with_container(bed.script("e", "true"), true);
    let empty = LaunchSandbox { first: None, ..request };
    let error = bed.backend().launch(empty).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_failed_create_or_start_leaves_nothing() {
    let bed = Bed::new().await;
    let (sandbox, missing) = bed.launch(bed.request("d", &bed.spec(&["/nope"]))).await.unwrap();
    let error = missing.init.start(|| {}).await.unwrap_err();
    assert!(error.to_string().contains("/nope"), "{error}");
    ended(&missing.init).await;
    sandbox.exited().await;
    missing.delete().await;
    bed.assert_clean();

    let (sandbox, pause) = bed.pod().await;
    let missing = join(&sandbox, bed.request("m", &bed.spec(&["nope"]))).await.unwrap();
    let error = missing.init.start(|| {}).await.unwrap_err();
    assert!(error.to_string().contains("nope"), "{error}");
    let twice = missing.init.start(|| {}).await.unwrap_err();
    assert_ne!(twice.kind(), Kind::Internal, "{twice}");
    ended(&missing.init).await;
    missing.delete().await;
    let bare = bed.script("n", "true");
    fs::remove_dir_all(bed.bundle("n").join("rootfs")).unwrap();
    let error = join(&sandbox, bare).await.err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    assert!(!bed.bundle("n").join("gvisor.json").exists(), "a record is left");
    let second = join(&sandbox, bed.script("pod", "true")).await.err().unwrap();
    assert_eq!(second.kind(), Kind::AlreadyExists, "{second}");
    assert_eq!(bed.exec(&pause, &["true"]).await.0.status, 0, "the first one runs on");
    stop(&sandbox, [&pause]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn another_process_can_clean_up() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let task = running(&sandbox, bed.script("m", "sleep 1000")).await;
    // Another shim process, that knows the bundles alone.
    let other = bed.backend();
    let id = |text| Id::new(text).unwrap();
    other.purge(&id("m"), &bed.bundle("m")).await.unwrap();
    assert_eq!(ended(&task.init).await.status, 137);
    assert_eq!(bed.exec(&pause, &["true"]).await.0.status, 0, "the Pod runs on");
    other.purge(&id("pod"), &bed.bundle("pod")).await.unwrap();
    other.purge(&id("pod"), &bed.bundle("pod")).await.unwrap();
    assert_eq!(ended(&pause.init).await.status, 137);
    bed.assert_clean();
}
