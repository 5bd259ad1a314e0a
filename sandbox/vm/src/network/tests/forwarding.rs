//! Port forwarding in a real namespace, to a guest that is a unix socket.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::bed::Bed;
use super::join;

const LIMIT: Duration = Duration::from_secs(20);
const BULK: usize = 10 << 20;
/// The guest's port that nobody listens on, that never answers, and that is not spoken to.
const CLOSED: u16 = 81;
const SILENT: u16 = 82;
const NONSENSE: u16 = 83;

/// A guest that sends everything back, after a line that says which port was meant.
fn echo_guest(vsock: &Path) -> JoinHandle<()> {
    let listener = UnixListener::bind(vsock).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(echo(stream));
        }
    })
}

async fn echo(stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    read.read_line(&mut line).await.unwrap();
    assert_eq!(line, "CONNECT 1026\n");
    write.write_all(b"OK 1073741824\n").await.unwrap();
    line.clear();
    read.read_line(&mut line).await.unwrap();
    let port: u16 = line.trim_end().parse().unwrap();
    if port == SILENT {
        // Held open until the host gives up.
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
        return;
    }
    let answer = match port {
        CLOSED => 1,
        NONSENSE => 99,
        _ => 0,
    };
    write.write_all(&[answer]).await.unwrap();
    if answer == 0 {
        write.write_all(line.as_bytes()).await.unwrap();
        // The other side may be gone before everything is sent back: the test tells.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

fn connect(to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.into(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Connects and waits for the guest's line.
fn greeted(to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let mut stream = connect(to)?;
    stream.read_exact(&mut [0; 3]).map(|()| stream)
}

/// Sends ten MiB, half-closes, and wants the port and the same bytes back.
fn exchange(to: SocketAddr) {
    let mut stream = connect(to).unwrap();
    let bytes: Vec<u8> = (0..BULK).map(|n| (n % 251) as u8).collect();
    let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    let header = format!("{}\n", to.port());
    assert!(got.starts_with(header.as_bytes()), "port {} reached", to.port());
    assert!(got[header.len()..] == bytes, "{} bytes came back whole", got.len());
}

#[tokio::test]
async fn connections_to_the_loopback_reach_the_guest() {
    let Some(bed) = Bed::new("forward").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let vsock = dir.path().join("vsock");
    let guest = echo_guest(&vsock);
    let joined = join(&bed.pod_path()).await.unwrap();
    let forward = joined.network.forward_ports(vsock).await.unwrap();
    assert!(forward.is_active());

    bed.inside_pod(|| {
        exchange((Ipv4Addr::LOCALHOST, 80).into());
        exchange((Ipv4Addr::new(127, 9, 8, 7), 65535).into());
        exchange((Ipv6Addr::LOCALHOST, 8080).into());
        for port in [CLOSED, NONSENSE] {
            let error = greeted((Ipv4Addr::LOCALHOST, port)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let start = Instant::now();
        let error = greeted((Ipv6Addr::LOCALHOST, SILENT)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(start.elapsed() > Duration::from_secs(9), "after the deadline");
    })
    .await;

    // Open connections end with it, and nothing listens afterwards.
    let one = || greeted((Ipv4Addr::LOCALHOST, 80));
    let mut open = bed.inside_pod(one).await.unwrap();
    drop(forward);
    tokio::task::yield_now().await;
    let ended = tokio::task::spawn_blocking(move || open.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let refused = bed
        .inside_pod(|| {
            TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, 80).into(), LIMIT).map(drop)
        })
        .await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    guest.abort();
}

#[tokio::test]
async fn connections_are_bounded_and_fail_with_the_machine() {
    let Some(bed) = Bed::new("bound").await else { return };
    // A Pod without IPv6 has its ports forwarded too.
    bed.pod_exec("sysctl -q -w net.ipv6.conf.lo.disable_ipv6=1").await;
    let dir = tempfile::tempdir().unwrap();
    let vsock = dir.path().join("vsock");
    let guest = echo_guest(&vsock);
    let joined = join(&bed.pod_path()).await.unwrap();
    let forward = joined.network.forward_ports(vsock).await.unwrap();
    let one = || greeted((Ipv4Addr::LOCALHOST, 80));
    let mut open =
        bed.inside_pod(move || (0..256).map(|_| one().unwrap()).collect::<Vec<_>>()).await;
    let beyond = bed.inside_pod(one).await.unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::ConnectionReset);
    open.truncate(200);
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = bed.inside_pod(one).await {
        assert!(Instant::now() < deadline, "no place became free: {error}");
    }
    // The machine is gone.
    guest.abort();
    drop(guest.await);
    let gone = bed.inside_pod(one).await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionReset);
    assert!(forward.is_active());
}
