//! From creation to deletion.

use std::fs;

use sandbox_core::{Backend, Kind, Role};

use crate::bed::{Bed, ended, until};

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn first_processes_end_with_their_own_status() {
    let bed = Bed::new().await;
    let cases = [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)];
    for (at, (script, status)) in cases.into_iter().enumerate() {
        let sandbox = bed.sandbox().await;
        let mut request = bed.alone(&format!("c{at}"), &format!("echo out; {script}"));
        let (stdio, log) = bed.log(&format!("c{at}.log"));
        request.stdio = stdio;
        let container = sandbox.create(request).await.unwrap();
        let init = container.init();
        init.start().await.unwrap();
        assert_eq!(ended(&*init).await.status, status, "{script}");
        assert_eq!(sandbox.exited().await.status, status);
        assert_eq!(fs::read_to_string(log).unwrap(), "out\n");
        assert!(!container.oom_killed().await);
        container.delete().await.unwrap();
        container.delete().await.unwrap();
    }
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn members_end_with_their_own_status() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let cases = [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)];
    for (at, (script, status)) in cases.into_iter().enumerate() {
        let mut request = bed.member(&format!("m{at}"), &format!("echo out; {script}"));
        let (stdio, log) = bed.log(&format!("m{at}.log"));
        request.stdio = stdio;
        let container = sandbox.create(request).await.unwrap();
        let init = container.init();
        assert_eq!(init.pid(), pause.init().pid());
        init.start().await.unwrap();
        assert_eq!(ended(&*init).await.status, status, "{script}");
        assert_eq!(fs::read_to_string(log).unwrap(), "out\n");
        container.delete().await.unwrap();
    }
    let again = sandbox.create(bed.member("m0", "exit 3")).await.unwrap();
    again.init().start().await.unwrap();
    assert_eq!(ended(&*again.init()).await.status, 3, "an id may come back");
    again.delete().await.unwrap();
    pause.init().signal(9, false).await.unwrap();
    assert_eq!(ended(&*pause.init()).await.status, 137);
    pause.delete().await.unwrap();
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn signals_reach_the_guest() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let script = "trap 'echo term; exit 42' TERM; echo ready; while :; do sleep 0.1; done";
    let mut request = bed.member("m", script);
    let (stdio, log) = bed.log("log");
    request.stdio = stdio;
    let container = sandbox.create(request).await.unwrap();
    let init = container.init();
    init.start().await.unwrap();
    until("ready", || fs::read_to_string(&log).is_ok_and(|text| text == "ready\n")).await;
    let refused = container.delete().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
    init.signal(15, false).await.unwrap();
    assert_eq!(ended(&*init).await.status, 42);
    let late = init.signal(15, false).await.unwrap_err();
    assert_eq!(late.kind(), Kind::NotFound, "{late}");
    let pids = container.pids().await.unwrap();
    assert_eq!(pids.len(), 1, "one that is not deleted yet still has a process: {pids:?}");
    container.delete().await.unwrap();

    let second = sandbox.create(bed.member("n", "sleep 1000 & sleep 1000")).await.unwrap();
    second.init().start().await.unwrap();
    assert!(!second.pids().await.unwrap().is_empty());
    second.init().signal(9, true).await.unwrap();
    assert_eq!(ended(&*second.init()).await.status, 137);

    // The Pod's end takes every container along.
    let third = sandbox.create(bed.member("o", "sleep 1000")).await.unwrap();
    third.init().start().await.unwrap();
    pause.init().signal(9, true).await.unwrap();
    assert_eq!(ended(&*third.init()).await.status, 137);
    assert_eq!(ended(&*pause.init()).await.status, 137);
    for container in [&second, &third, &pause] {
        container.delete().await.unwrap();
    }
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn what_was_created_but_never_started_can_be_killed() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let container = sandbox.create(bed.member("m", "sleep 1")).await.unwrap();
    container.init().signal(9, false).await.unwrap();
    assert_eq!(ended(&*container.init()).await.status, 137);
    let late = container.init().start().await.unwrap_err();
    assert_eq!(late.kind(), Kind::NotFound, "{late}");
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(ended(&*pause.init()).await.status, 137);
    pause.delete().await.unwrap();

    let other = bed.sandbox().await;
    let root = other.create(bed.alone("c", "sleep 1")).await.unwrap();
    root.init().signal(15, false).await.unwrap();
    ended(&*root.init()).await;
    root.delete().await.unwrap();
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_failed_create_or_start_leaves_nothing() {
    let bed = Bed::new().await;
    let sandbox = bed.sandbox().await;
    let mut spec = bed.spec(&["sh"]);
    spec["mounts"][0] = serde_json::json!({"destination": "/x", "type": "bind", "source": "/none"});
    let request = bed.request("c", Role::Standalone, &spec);
    let error = sandbox.create(request).await.unwrap_err();
    assert!(error.to_string().contains("/none"), "{error}");
    bed.assert_clean();

    let mut bare = bed.request("b", Role::Standalone, &bed.spec(&["sh"]));
    fs::remove_dir_all(bed.bundle("b").join("rootfs")).unwrap();
    fs::write(bed.bundle("b").join("rootfs"), "no directory").unwrap();
    bare.stdio = bed.log("b.log").0;
    let error = sandbox.create(bare).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("b/rootfs is not a directory"), "{error}");
    bed.assert_clean();

    let missing = sandbox.create(bed.request("d", Role::Standalone, &bed.spec(&["/nope"]))).await;
    let missing = missing.unwrap();
    let error = missing.init().start().await.unwrap_err();
    assert!(error.to_string().contains("/nope"), "{error}");
    ended(&*missing.init()).await;
    missing.delete().await.unwrap();
    bed.assert_clean();

    let (sandbox, pause) = bed.pod().await;
    let role = || Role::Member { sandbox: sandbox_core::Id::new("pod").unwrap() };
    let missing = sandbox.create(bed.request("m", role(), &bed.spec(&["nope"]))).await.unwrap();
    let error = missing.init().start().await.unwrap_err();
    assert!(error.to_string().contains("nope"), "{error}");
    let twice = missing.init().start().await.unwrap_err();
    assert_ne!(twice.kind(), Kind::Internal, "{twice}");
    ended(&*missing.init()).await;
    missing.delete().await.unwrap();
    let second = sandbox.create(bed.member("pod", "true")).await.unwrap_err();
    assert_eq!(second.kind(), Kind::AlreadyExists, "{second}");
    assert!(bed.exec(&*pause, &["true"]).await.0.status == 0, "the first one lives on");
    sandbox.stop().await.unwrap();
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_stranger_can_clean_up() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let container = sandbox.create(bed.member("m", "sleep 1000")).await.unwrap();
    container.init().start().await.unwrap();
    // Another shim process, that knows the bundles alone.
    let stranger = bed.backend();
    let id = |text| sandbox_core::Id::new(text).unwrap();
    stranger.purge(&id("m"), &bed.bundle("m")).await.unwrap();
    assert_eq!(ended(&*container.init()).await.status, 137);
    assert_eq!(bed.exec(&*pause, &["true"]).await.0.status, 0, "the Pod lives on");
    stranger.purge(&id("pod"), &bed.bundle("pod")).await.unwrap();
    stranger.purge(&id("pod"), &bed.bundle("pod")).await.unwrap();
    assert_eq!(ended(&*pause.init()).await.status, 137);
    bed.assert_clean();
}
