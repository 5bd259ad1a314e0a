use std::time::Duration;

use super::*;
use crate::fake::FakeBackend;
use crate::request::{CreateContainer, LaunchSandbox, StdioPaths};
use crate::sandbox::Launched;
use crate::{Id, bundle::Bundle};

/// A process of the fake backend whose start takes `delay`, and the fake.
async fn process(dir: &std::path::Path, delay: Duration) -> (Arc<Process>, FakeBackend) {
    use crate::sandbox::Backend;
    std::fs::create_dir(dir.join("rootfs")).unwrap();
    std::fs::write(dir.join("config.json"), "{\"ociVersion\":\"1.1.0\"}").unwrap();
    let container = CreateContainer {
        id: Id::new("c").unwrap(),
        bundle: Bundle::load(dir).unwrap(),
        rootfs: Vec::new(),
        stdio: StdioPaths::default(),
        checkpoint: None,
    };
    let backend = FakeBackend::default();
    backend.steps_take(delay);
    let request = LaunchSandbox::with_container(container, false);
    let Launched { sandbox, first } = backend.launch(request).await.unwrap();
    let exited = async move { sandbox.exited().await };
    let init = first.unwrap().init;
    (Process::follow("container c".into(), init, exited, async |_| {}), backend)
}

#[tokio::test(start_paused = true)]
async fn a_kill_during_a_start_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (process, backend) = process(dir.path(), Duration::from_millis(200)).await;
    let kill = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(process.phase(), Phase::Starting);
        process.kill(9, false).await
    };
    let (started, killed) = tokio::join!(process.start(|| {}), kill);
    started.unwrap();
    killed.unwrap();
    assert_eq!(process.exited().await.status, 137);
    assert_eq!(backend.journal.read(), ["launch c", "create c", "start c", "signal c 9"]);
}

#[tokio::test(start_paused = true)]
async fn a_start_outlives_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let (process, _backend) = process(dir.path(), Duration::from_millis(200)).await;
    let impatient = tokio::time::timeout(Duration::from_millis(50), process.start(|| {})).await;
    assert!(impatient.is_err());
    assert_eq!(process.phase(), Phase::Starting);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(process.phase(), Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn sizes_and_closed_inputs_are_kept_for_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (process, backend) = process(dir.path(), Duration::from_millis(200)).await;
    process.resize(TerminalSize { width: 80, height: 24 }).await.unwrap();
    process.close_stdin().await.unwrap();
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        process.resize(TerminalSize { width: 90, height: 30 }).await.unwrap();
    };
    let (started, ()) = tokio::join!(process.start(|| {}), later);
    started.unwrap();
    process.paused();
    assert_eq!(process.phase(), Phase::Paused);
    process.kill(9, true).await.unwrap();
    assert_eq!(process.exited().await.status, 137);
    let journal = backend.journal.read();
    let expected =
        ["start c", "resize c 80x24", "close stdin of c", "resize c 90x30", "signal c 9 all"];
    assert_eq!(journal[2..], expected);
}

#[tokio::test]
async fn an_abandoned_process_is_released_before_its_exit_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (process, backend) = process(dir.path(), Duration::ZERO).await;
    process.kill(0, false).await.unwrap();
    assert_eq!(process.phase(), Phase::Created);
    assert_eq!(process.delete().await.unwrap().status, 137);
    assert_eq!(backend.journal.read()[2..], ["abandon c"]);
    let late = process.start(|| {}).await.unwrap_err();
    assert_eq!(
        (late.kind(), late.to_string().as_str()),
        (Kind::FailedPrecondition, "container c has exited")
    );
}
