//! gVisor's `urpc`: one JSON object per call over a Unix stream socket, file descriptors beside
//! its first byte (gVisor's `pkg/urpc`).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// The longest answer that is read, in bytes: the sandbox is not trusted.
const ANSWER_MAX: usize = 4 << 20;
/// `sockaddr_un` holds this many bytes of path, its closing NUL included.
const SUN_PATH: usize = 108;
/// How long to wait before a full accept queue is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum UrpcError {
    /// The control server does not accept connections.
    #[error("connecting to the sandbox at {path}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The call could not be sent, or its answer not read.
    #[error("calling {method} in the sandbox")]
    Io {
        /// The method called.
        method: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There was no answer, or none with a result: the sandbox may have exited.
    #[error("the sandbox closed the connection during {method}")]
    Closed {
        /// The method called.
        method: &'static str,
    },
    /// The answer is not what this method answers.
    #[error("the sandbox's answer to {method} cannot be understood")]
    Answer {
        /// The method called.
        method: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// The answer exceeds the limit.
    #[error("the sandbox's answer to {method} is longer than 4 MiB")]
    TooLong {
        /// The method called.
        method: &'static str,
    },
    /// The sandbox refused the call, in its own words.
    #[error("{message}")]
    Remote {
        /// The method called.
        method: &'static str,
        /// gVisor's text.
        message: String,
    },
    /// The sandbox did not answer in time.
    #[error("the sandbox did not answer {method} within {seconds} s", seconds = after.as_secs())]
    Deadline {
        /// The method called.
        method: &'static str,
        /// The limit.
        after: Duration,
    },
}

#[derive(Serialize)]
struct Call<'a, A> {
    method: &'a str,
    arg: &'a A,
}

#[derive(Deserialize)]
struct Answer<R> {
    #[serde(default)]
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default = "none")]
    result: Option<R>,
}

fn none<R>() -> Option<R> {
    None
}

/// A connection to a sandbox's control server; it serves one call at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to the socket at `path`, however long the path is.
    pub(crate) async fn open(path: &Path) -> Result<Self, UrpcError> {
        let failed = |source| UrpcError::Connect { path: path.to_owned(), source };
        loop {
            match connect(path).await {
                Ok(stream) => return Ok(Self { stream }),
                // Unix sockets answer EAGAIN while the accept queue is full.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// Calls `method` and waits for the answer, however long that takes. Dropping the future
    /// abandons the call.
    pub(crate) async fn call<A: Serialize, R: DeserializeOwned>(
        &mut self,
        method: &'static str,
        arg: &A,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<R>, UrpcError> {
        let bytes = serde_json::to_vec(&Call { method, arg })
            .map_err(|source| UrpcError::Answer { method, source })?;
        let io = |source| UrpcError::Io { method, source };
        self.send(&bytes, fds).await.map_err(io)?;
        let answer: Answer<R> = self.receive(method).await?;
        if answer.success {
            Ok(answer.result)
        } else {
            Err(UrpcError::Remote { method, message: answer.err })
        }
    }

    async fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let socket = self.stream.as_raw_fd();
        let first = self
            .stream
            .async_io(Interest::WRITABLE, || {
                let data = [IoSlice::new(bytes)];
                sendmsg::<()>(socket, &data, control, MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)
            })
            .await?;
        self.stream.write_all(&bytes[first..]).await
    }

    async fn receive<R: DeserializeOwned>(
        &mut self,
        method: &'static str,
    ) -> Result<Answer<R>, UrpcError> {
        let mut bytes = Vec::with_capacity(4096);
        loop {
            let read = self.stream.read_buf(&mut bytes).await;
            match read.map_err(|source| UrpcError::Io { method, source })? {
                0 => return Err(UrpcError::Closed { method }),
                _ if bytes.len() > ANSWER_MAX => return Err(UrpcError::TooLong { method }),
                _ => {}
            }
            match serde_json::from_slice(&bytes) {
                Ok(answer) => return Ok(answer),
                Err(e) if e.is_eof() => {}
                Err(source) => return Err(UrpcError::Answer { method, source }),
            }
        }
    }
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() < SUN_PATH {
        return UnixStream::connect(path).await;
    }
    // Too long for an address: reach it through its directory's descriptor.
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = std::fs::File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use tokio::net::UnixListener;

    use super::*;

    /// A server that answers one call with `answer`, in pieces, and returns what it was sent
    /// and how many descriptors came along.
    async fn serve(listener: UnixListener, answer: &'static [u8]) -> (String, usize) {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        let mut first = [0u8; 1];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let fds = stream
            .async_io(Interest::READABLE, || {
                let mut data = [IoSliceMut::new(&mut first)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let message =
                    recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), flags)?;
                let mut count = 0;
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(fds) = control {
                        count += fds.len();
                    }
                }
                Ok(count)
            })
            .await
            .unwrap();
        let mut rest = vec![0; 4096];
        let read = stream.read(&mut rest).await.unwrap();
        for piece in answer.chunks(7) {
            stream.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let text = [&first[..], &rest[..read]].concat();
        (String::from_utf8(text).unwrap(), fds)
    }

    async fn exchange(answer: &'static [u8]) -> (Result<Option<u32>, UrpcError>, String, usize) {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        std::fs::create_dir(&long).unwrap();
        // Bound through a descriptor too: the path is beyond an address's length.
        let file = std::fs::File::open(&long).unwrap();
        let short = format!("/proc/self/fd/{}/s.sock", file.as_raw_fd());
        let listener = UnixListener::bind(short).unwrap();
        let server = tokio::spawn(serve(listener, answer));
        let mut connection = Connection::open(&long.join("s.sock")).await.unwrap();
        let fd = file.as_fd();
        let result = connection.call("m.Do", &serde_json::json!({"CID": "c"}), &[fd, fd]).await;
        let (sent, fds) = server.await.unwrap();
        (result, sent, fds)
    }

    #[tokio::test]
    async fn calls_and_passes_descriptors() {
        let (result, sent, fds) = exchange(br#"{"success":true,"err":"","result":1792}"#).await;
        assert_eq!(result.unwrap(), Some(1792));
        assert_eq!(sent, r#"{"method":"m.Do","arg":{"CID":"c"}}"#);
        assert_eq!(fds, 2);
    }

    #[tokio::test]
    async fn distinguishes_failures() {
        let (result, ..) = exchange(br#"{"success":false,"err":"no such"}"#).await;
        assert!(matches!(result, Err(UrpcError::Remote { message, .. }) if message == "no such"));
        let (result, ..) = exchange(b"{\"success\":tru").await;
        assert!(matches!(result, Err(UrpcError::Closed { .. })));
        let (result, ..) = exchange(b"garbage").await;
        assert!(matches!(result, Err(UrpcError::Answer { .. })));
        let (result, ..) = exchange(br#"{"success":true,"result":"text"}"#).await;
        assert!(matches!(result, Err(UrpcError::Answer { .. })));
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let flood = tokio::spawn(async move {
            let mut text = b"{\"success\":true,\"result\":\"".to_vec();
            text.resize(1 << 16, b'x');
            while server.write_all(&text).await.is_ok() {
                text.fill(b'x');
            }
        });
        let mut connection = Connection { stream: client };
        let result = connection.receive::<String>("m.Do").await;
        assert!(matches!(result, Err(UrpcError::TooLong { .. })));
        drop(connection);
        flood.await.unwrap();
    }
}
