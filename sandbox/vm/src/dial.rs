//! Connecting to the guest through the hybrid vsock: a unix socket on which `CONNECT <port>\n` is
//! answered by `OK <n>\n` (cloud-hypervisor's `docs/vsock.md`; vhost-device-vsock does the same).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::{ACCEPTED, FORWARD_PORT};
use async_trait::async_trait;
use sandbox_core::{Classified, Kind};
use sandbox_netns::{Dial, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vm_driver::connect_nofollow;

/// Deadline for a guest to accept a forwarded connection.
const FORWARD_DEADLINE: Duration = Duration::from_secs(10);

/// Maximum length of the answer to `CONNECT` in bytes.
const ANSWER_MAX: usize = 32;

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("connecting to port {port} of the guest")]
    Io { port: u32, source: io::Error },
    #[error("the guest did not accept a connection to port {0}")]
    Closed(u32),
    #[error("connecting to port {port} of the guest took more than {seconds} s")]
    Deadline { port: u32, seconds: u64 },
    #[error("the guest refused {header:?} on port {port}")]
    Refused { port: u32, header: String },
}

impl Classified for DialError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { .. } | Self::Closed(_) => Kind::Unavailable,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Refused { .. } => Kind::NotFound,
        }
    }
}

/// Connects to `port` of the guest behind the socket `vsock` and sends it `header`, a line without
/// its newline, which the agent has to accept.
pub(crate) async fn dial(
    vsock: &Path,
    port: u32,
    header: &str,
    deadline: Duration,
) -> Result<UnixStream, DialError> {
    match tokio::time::timeout(deadline, handshake(vsock, port, header)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Deadline { port, seconds: deadline.as_secs() }),
    }
}

/// The ports of a guest's loopback, behind the VM's hybrid vsock.
#[derive(Debug)]
pub(crate) struct GuestPorts(PathBuf);

impl GuestPorts {
    /// Those of the guest behind the socket `vsock`.
    pub(crate) fn new(vsock: &Path) -> Self {
        Self(vsock.to_owned())
    }
}

#[async_trait]
impl Dial for GuestPorts {
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>> {
        let dialled = dial(&self.0, FORWARD_PORT, &port.to_string(), FORWARD_DEADLINE).await;
        Ok(Box::new(dialled.map_err(io::Error::other)?))
    }
}

async fn handshake(vsock: &Path, port: u32, header: &str) -> Result<UnixStream, DialError> {
    let failed = |source| match io::Error::kind(&source) {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => DialError::Closed(port),
        _ => DialError::Io { port, source },
    };
    let mut stream = connect_nofollow(vsock).await.map_err(failed)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(failed)?;
    // Byte by byte, since what follows the line belongs to the stream.
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    while answer.last() != Some(&b'\n') {
        if answer.len() == ANSWER_MAX {
            let odd = io::Error::new(io::ErrorKind::InvalidData, "the answer is not a line");
            return Err(failed(odd));
        }
        answer.push(stream.read_u8().await.map_err(failed)?);
    }
    if !answer.starts_with(b"OK ") {
        return Err(DialError::Closed(port));
    }
    stream.write_all(format!("{header}\n").as_bytes()).await.map_err(failed)?;
    match stream.read_u8().await.map_err(failed)? {
        ACCEPTED => Ok(stream),
        _ => Err(DialError::Refused { port, header: header.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// The outcome of a dial that gets `answer`.
    async fn outcome(answer: &'static [u8]) -> Result<Vec<u8>, DialError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let other = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 1025\n");
            stream.write_all(answer).await.unwrap();
            // The client closes the connection after nonsense, which may fail these two.
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let own = async {
            let mut stream = dial(&path, 1025, "c - stdout", Duration::from_millis(500)).await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            Ok(rest)
        };
        tokio::join!(other, own).1
    }

    #[tokio::test]
    async fn answers_are_classified() {
        assert_eq!(outcome(b"OK 1073741824\n\0left").await.unwrap(), b"left");
        let error = |result: Result<Vec<u8>, DialError>| result.unwrap_err();
        assert!(matches!(error(outcome(b"").await), DialError::Closed(1025)));
        assert!(matches!(error(outcome(b"NO\n").await), DialError::Closed(1025)));
        assert!(matches!(error(outcome(b"OK 1\n\x01").await), DialError::Refused { .. }));
        assert!(matches!(error(outcome(&[b'x'; 64]).await), DialError::Io { .. }));
    }

    #[tokio::test]
    async fn a_port_of_the_guest_is_asked_for_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = async {
            for answer in [b"\0hello", b"\x01hello"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 13];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(&request, b"CONNECT 1026\n");
                stream.write_all(b"OK 1073741824\n").await.unwrap();
                let mut header = [0; 5];
                stream.read_exact(&mut header).await.unwrap();
                assert_eq!(&header, b"8080\n");
                stream.write_all(answer).await.unwrap();
            }
        };
        let ports = GuestPorts::new(&path);
        let host = async {
            let mut greeting = String::new();
            let mut stream = ports.dial(8080).await.unwrap();
            stream.read_to_string(&mut greeting).await.unwrap();
            assert_eq!(greeting, "hello");
            let refused = ports.dial(8080).await.err().unwrap().to_string();
            assert!(refused.contains("refused"), "{refused}");
        };
        tokio::join!(guest, host);
    }

    #[tokio::test]
    async fn a_silent_guest_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = dial(&path, 7, "x", Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, DialError::Deadline { port: 7, .. }));
    }
}
