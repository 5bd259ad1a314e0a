//! Port forwarding in a real namespace, to a guest that is a unix socket.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sandbox_netns::{Dial, Stream};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::bed::Bed;
use super::join;

const LIMIT: Duration = Duration::from_secs(20);
const BULK: usize = 10 << 20;
/// Ports of the guest: one that refuses, one that never answers, one that answers nonsense.
const CLOSED: u16 = 81;
const SILENT: u16 = 82;
const NONSENSE: u16 = 83;

/// How long the guest may take to accept a connection.
const ACCEPT: Duration = Duration::from_millis(500);

/// The guest's ports, each behind one unix socket: the port's line there, one byte back.
#[derive(Debug)]
struct Ports(PathBuf);

#[async_trait]
impl Dial for Ports {
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>> {
        let connect = async {
            let mut stream = UnixStream::connect(&self.0).await?;
            stream.write_all(format!("{port}\n").as_bytes()).await?;
            match stream.read_u8().await? {
                0 => Ok(stream),
                _ => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            }
        };
        Ok(Box::new(tokio::time::timeout(ACCEPT, connect).await??))
    }
}

/// A guest that sends everything back, after a line with the port that was meant.
fn echo_guest(socket: &Path) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
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
    let port: u16 = line.trim_end().parse().unwrap();
    if port == SILENT {
        // Held open until the host times out.
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
        // The other side may close before everything is sent back; the test checks that.
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
#[ignore = "needs netns, program:ip"]
async fn connections_to_the_loopback_reach_the_guest() {
    let bed = Bed::new("forward").await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("guest");
    let guest = echo_guest(&socket);
    let joined = join(&bed.pod_path()).await.unwrap();
    let forward = joined.network.forward_ports(Arc::new(Ports(socket))).await.unwrap();
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
        assert!(start.elapsed() >= ACCEPT, "after the deadline");
    })
    .await;

    // Open connections end with it, and nothing listens afterwards.
    let one = || greeted((Ipv4Addr::LOCALHOST, 80));
    let mut open = bed.inside_pod(one).await.unwrap();
    drop(forward);
    tokio::task::yield_now().await;
    let closed = tokio::task::spawn_blocking(move || open.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(closed, Ok(1..)), "{closed:?}");
    let refused = bed
        .inside_pod(|| {
            TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, 80).into(), LIMIT).map(drop)
        })
        .await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    guest.abort();
}

#[tokio::test]
#[ignore = "needs netns, program:ip"]
async fn connections_are_bounded_and_fail_with_the_guest() {
    let bed = Bed::new("bound").await;
    // A Pod without IPv6 has its ports forwarded too.
    bed.pod_exec("sysctl -q -w net.ipv6.conf.lo.disable_ipv6=1").await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("guest");
    let guest = echo_guest(&socket);
    let joined = join(&bed.pod_path()).await.unwrap();
    let forward = joined.network.forward_ports(Arc::new(Ports(socket))).await.unwrap();
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
    // The guest is gone.
    guest.abort();
    drop(guest.await);
    let gone = bed.inside_pod(one).await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionReset);
    assert!(forward.is_active());
}
