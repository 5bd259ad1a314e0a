//! Standard streams, terminals, forwarded connections.

use std::time::{Duration, Instant};

use agent_api::agent::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::host::*;

const ALL: usize = 100 << 20;

fn with_stdin() -> Stdio {
    Stdio { stdin: true, stdout: true, ..Default::default() }
}

pub(crate) async fn stdin(host: &Host) {
    let mut container = host.run(&["cat"], with_stdin()).await;
    let mut stdin = container.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    assert_eq!(line(container.stdout.as_mut().unwrap()).await, "one");
    stdin.write_all(b"two\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    assert_eq!(read(&mut container.stdout).await, "two\n");
    assert_eq!(host.wait(&container.id, "").await.status, 0);
    host.delete(&container.id).await;
}

pub(crate) async fn close_stdin(host: &Host) {
    let mut container = host.run(&["wc", "-c"], with_stdin()).await;
    let mut stdin = container.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
    host.client.close_stdin(ctx(), &process(&container.id, "")).await.unwrap();
    assert_eq!(read(&mut container.stdout).await, "1048576\n");
    assert_eq!(host.wait(&container.id, "").await.status, 0);
    drop(stdin);
    host.delete(&container.id).await;
}

pub(crate) async fn terminal(host: &Host) {
    let stdio = Stdio { terminal: true, ..Default::default() };
    let container = host.run(&["sh"], stdio.clone()).await;
    let id = container.id.clone();
    dialogue(host, &id, "", container.terminal.unwrap()).await;
    host.delete(&id).await;
    let container = host.run(&["sleep", "1000"], Stdio::new()).await;
    let id = container.id.clone();
    let exec = host.exec(&id, "tty", &exec_spec(&["sh"]), stdio).await;
    host.start(&id, "tty").await;
    dialogue(host, &id, "tty", exec.terminal.unwrap()).await;
    host.end(&id).await;
}

async fn dialogue(host: &Host, id: &str, exec: &str, mut terminal: tokio::net::UnixStream) {
    let resize = ResizeRequest {
        process: Some(process(id, exec)).into(),
        width: 120,
        height: 40,
        ..Default::default()
    };
    host.client.resize(ctx(), &resize).await.unwrap();
    terminal.write_all(b"tty; stty size; exit 5\n").await.unwrap();
    let mut shown = Vec::new();
    timeout(Duration::from_secs(60), terminal.read_to_end(&mut shown)).await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("/dev/pts/0\r\n") && shown.contains("40 120\r\n"), "{shown}");
    assert_eq!(host.wait(id, exec).await.status, 5);
}

/// All output arrives, though the process exits as soon as it has written it.
pub(crate) async fn much_output(host: &Host) {
    let count = format!("count={}", ALL >> 16);
    let stdio = Stdio { stdout: true, ..Default::default() };
    let mut container =
        host.run(&["dd", "if=/dev/zero", "bs=64k", &count, "status=none"], stdio).await;
    let began = Instant::now();
    let mut stdout = container.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut count = 0;
    loop {
        match timeout(Duration::from_secs(60), stdout.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            read => count += read,
        }
    }
    let took = began.elapsed();
    assert_eq!(count, ALL);
    println!("100 MiB in {} ms", took.as_millis());
    assert_eq!(host.wait(&container.id, "").await.status, 0);
    host.delete(&container.id).await;

    // A slow reader loses nothing either.
    let mut container = host
        .run(&["head", "-c", "1000000", "/dev/zero"], Stdio { stdout: true, ..Default::default() })
        .await;
    let early = timeout(Duration::from_secs(1), host.wait(&container.id, "")).await;
    assert!(early.is_err(), "the output fits into the buffers, so the test has no slow reader");
    assert_eq!(read(&mut container.stdout).await.len(), 1_000_000);
    assert_eq!(host.wait(&container.id, "").await.status, 0);
    host.delete(&container.id).await;
}

/// A background process that has the pipe open does not delay Wait.
pub(crate) async fn background_process(host: &Host) {
    let container = host.run(&["sleep", "1000"], Stdio::new()).await;
    let id = &container.id;
    let spec = exec_spec(&["sh", "-c", "(sleep 3; echo late) & echo early"]);
    let mut exec = host.exec(id, "bg", &spec, outputs()).await;
    host.start(id, "bg").await;
    let began = Instant::now();
    assert_eq!(host.wait(id, "bg").await.status, 0);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(read(&mut exec.stdout).await, "early\nlate\n");
    host.end(id).await;
}

/// A stalled reader blocks only the process that writes to it.
pub(crate) async fn stalled_reader(host: &Host) {
    let stalled = host.run(&["yes"], outputs()).await;
    let blocked = timeout(Duration::from_secs(60), await_idle(host, &stalled.id)).await;
    blocked.expect("the writer does not block");
    let mut container = host.run(&["sh", "-c", "echo fine"], outputs()).await;
    assert_eq!(read(&mut container.stdout).await, "fine\n");
    assert_eq!(host.wait(&container.id, "").await.status, 0);
    host.delete(&container.id).await;
    host.kill(&stalled.id, 9, false).await.unwrap();
    assert_eq!(host.wait(&stalled.id, "").await.status, 137);
    host.delete(&stalled.id).await;
}

/// Waits until a container uses no CPU time.
async fn await_idle(host: &Host, id: &str) {
    let mut before = None;
    loop {
        let stats = host.client.stats(ctx(), &crate::host::container(id)).await.unwrap();
        if stats.cpu_total_ns.is_some() && stats.cpu_total_ns == before {
            return;
        }
        before = stats.cpu_total_ns;
        sleep(Duration::from_millis(200)).await;
    }
}

pub(crate) async fn forward(host: &Host) {
    let container = host.run(&["nc", "-l", "-p", "8080", "-e", "cat"], Stdio::new()).await;
    let mut answer = agent_api::REFUSED;
    let mut stream = None;
    for _ in 0..50 {
        let (connected, byte) = host.connect(agent_api::FORWARD_PORT, "8080").await;
        answer = byte;
        stream = Some(connected);
        if answer == agent_api::ACCEPTED {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(answer, agent_api::ACCEPTED);
    let mut stream = stream.unwrap();
    stream.write_all(b"there and back\n").await.unwrap();
    assert_eq!(line(&mut stream).await, "there and back");
    assert_eq!(host.connect(agent_api::FORWARD_PORT, "8081").await.1, agent_api::REFUSED);
    assert_eq!(host.connect(agent_api::FORWARD_PORT, "port").await.1, agent_api::REFUSED);
    host.end(&container.id).await;
    let mut rest = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
}
