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

/// Runs, has exited, and takes a while to deliver its output.
#[derive(Debug)]
struct Talkative {
    exit: crate::exit::ExitCell,
    delivered: Arc<std::sync::atomic::AtomicU32>,
}

#[async_trait]
impl Prepared for Talkative {
    async fn start(self: Box<Self>, _early: Early) -> Result<Arc<dyn Running>> {
        Ok(Arc::new(*self))
    }

    async fn abandon(self: Box<Self>) {}
}

#[async_trait]
impl Running for Talkative {
    async fn signal(&self, _signal: i32, _all: bool) -> Result<()> {
        self.exit.set(Exit::now(0));
        Ok(())
    }

    async fn wait(&self) -> Ended {
        Ended { exit: self.exit.wait().await, oom_killed: false }
    }

    async fn drain(&self) {
        tokio::time::sleep(Duration::from_secs(10)).await;
        self.delivered.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }

    async fn resize(&self, _size: TerminalSize) -> Result<()> {
        Ok(())
    }

    async fn close_stdin(&self) -> Result<()> {
        Ok(())
    }
}

/// A logger of nerdctl's kind ends when it learns of the exit: an exit that waited for it would
/// never be reported.
#[tokio::test(start_paused = true)]
async fn an_exit_is_reported_before_the_output_is_delivered_and_a_delete_after() {
    let delivered = Arc::default();
    let exit = crate::exit::ExitCell::new();
    let prepared = Talkative { exit, delivered: Arc::clone(&delivered) };
    let sandbox = std::future::pending();
    let process = Process::follow("c".into(), Box::new(prepared), sandbox, async |_| {});
    process.start(|| {}).await.unwrap();
    process.kill(15, false).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(process.exited().await.status, 0);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let drained = || delivered.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(drained(), 0);
    assert_eq!(process.delete().await.unwrap().status, 0);
    assert_eq!((begun.elapsed(), drained()), (Duration::from_secs(10), 1));
}
