//! cloud-hypervisor's REST API: HTTP/1.1 on a unix socket, with file descriptors sent along with a
//! request's first byte. No HTTP library passes descriptors, and little of the protocol is in use.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::error::DriverError;
use crate::socket::{connect_nofollow, send};

const PROGRAM: &str = "cloud-hypervisor";
/// Maximum size of a response's head in bytes.
const HEAD_MAX: usize = 8 * 1024;
/// Maximum size of a response's body in bytes.
const BODY_MAX: usize = 1 << 20;
/// Maximum number of header lines.
const HEADERS_MAX: usize = 32;

/// The server at a unix socket. Each call is a connection of its own.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    socket: PathBuf,
    deadline: Duration,
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    body: Vec<u8>,
}

impl Rest {
    /// The server at `socket`; each call to it has `deadline`.
    pub(crate) fn new(socket: PathBuf, deadline: Duration) -> Self {
        Self { socket, deadline }
    }

    /// Does `call` and returns the response's body.
    pub(crate) async fn get(&self, call: &str) -> Result<Vec<u8>, DriverError> {
        self.call("GET", call, None, None).await
    }

    /// Does `call`, with `body` and `fd` where it takes them.
    pub(crate) async fn put(
        &self,
        call: &str,
        body: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), DriverError> {
        self.call("PUT", call, body, fd).await.map(drop)
    }

    async fn call(
        &self,
        method: &str,
        call: &str,
        body: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<u8>, DriverError> {
        let request = request(method, call, body);
        let exchange = async {
            let mut stream = connect_nofollow(&self.socket).await?;
            send(&stream, request.as_bytes(), fd).await?;
            receive(&mut stream).await
        };
        let response = match tokio::time::timeout(self.deadline, exchange).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(failed(error, call)),
            Err(_) => {
                return Err(DriverError::Deadline {
                    program: PROGRAM,
                    step: format!("answer {call}"),
                    after: self.deadline,
                });
            }
        };
        match response.status {
            200..=299 => Ok(response.body),
            status => Err(DriverError::Refused {
                program: PROGRAM,
                call: call.to_owned(),
                message: message(status, &response.body),
            }),
        }
    }
}

fn request(method: &str, call: &str, body: Option<Value>) -> String {
    let head = format!("{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\n");
    match body.map(|body| body.to_string()) {
        Some(body) => {
            let length = body.len();
            format!(
                "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        }
        None => format!("{head}\r\n"),
    }
}

/// The text of an error response: a list of causes, outermost first, or plain text.
fn message(status: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match serde_json::from_slice::<Vec<String>>(body) {
        Ok(causes) => causes.join(": "),
        Err(_) if text.trim().is_empty() => format!("status {status}"),
        Err(_) => text.trim().to_owned(),
    }
}

async fn receive(stream: &mut UnixStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    loop {
        if let Some((head, status, length)) = parse(&bytes)? {
            let end = head + length;
            while bytes.len() < end {
                more(stream, &mut bytes).await?;
            }
            return Ok(Response { status, body: bytes[head..end].to_vec() });
        }
        if bytes.len() > HEAD_MAX {
            return Err(invalid("its head is too long"));
        }
        more(stream, &mut bytes).await?;
    }
}

async fn more(stream: &mut UnixStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// The head's length, the status and the body's length, once the head is complete. There are no
/// interim responses, since no request asks for them.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, u16, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(invalid)? else {
        return Ok(None);
    };
    let status = response.code.ok_or_else(|| invalid("it has no status"))?;
    let mut length = 0;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("Content-Length") {
            let text = std::str::from_utf8(header.value).map_err(invalid)?;
            length = text.trim().parse().map_err(invalid)?;
        }
        if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            return Err(invalid("its body comes in chunks"));
        }
    }
    if length > BODY_MAX {
        return Err(invalid("its body is too long"));
    }
    // 204 has no body, whatever the headers say (RFC 9110, 8.6).
    Ok(Some((head, status, if status == 204 { 0 } else { length })))
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn failed(error: io::Error, call: &str) -> DriverError {
    let call = call.to_owned();
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => DriverError::Closed { program: PROGRAM, call },
        io::ErrorKind::InvalidData => {
            DriverError::Answer { program: PROGRAM, call, reason: error.to_string() }
        }
        _ => DriverError::Io { program: PROGRAM, source: error },
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use serde_json::json;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    use super::*;

    /// A server that answers its connections with `answers`, in order.
    fn serve(answers: Vec<&'static str>) -> (tempfile::TempDir, Rest) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
                // In two parts; the client may close the connection after the first.
                let (first, second) = answer.split_at(answer.len() / 2);
                stream.write_all(first.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
                let _ = stream.write_all(second.as_bytes()).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            }
        });
        (dir, Rest::new(socket, Duration::from_millis(500)))
    }

    #[tokio::test]
    async fn reads_answers_and_refusals() {
        let (_dir, rest) = serve(vec![
            "HTTP/1.1 200 \r\nServer: x\r\nContent-Length: 9\r\n\r\n{\"a\": 15}trailing",
            "HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 500 \r\nContent-Length: 30\r\n\r\n[\"Error from API\",\"boot\",\"no\"]",
            "HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\nshort",
            "nonsense\r\n\r\n",
            "",
        ]);
        assert_eq!(rest.get("vmm.ping").await.unwrap(), b"{\"a\": 15}");
        rest.put("vm.boot", None, None).await.unwrap();
        let mut errors = Vec::new();
        for _ in 0..6 {
            let error = rest.put("vm.boot", Some(json!({})), None).await.unwrap_err();
            errors.push(error.to_string());
        }
        assert_eq!(errors[0], "cloud-hypervisor refused vm.boot: Error from API: boot: no");
        assert_eq!(errors[1], "cloud-hypervisor refused vm.boot: status 404");
        assert!(errors[2].ends_with("is invalid: its body is too long"), "{errors:?}");
        assert_eq!(errors[3], "cloud-hypervisor closed the connection during vm.boot");
        assert!(errors[4].contains("is invalid: "), "{errors:?}");
        assert_eq!(errors[5], "cloud-hypervisor did not answer vm.boot within 0.5 s");
    }

    #[tokio::test]
    #[allow(unsafe_code, reason = "received descriptors are raw")]
    async fn a_descriptor_comes_with_the_request() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let request = request("PUT", "vm.add-net", Some(json!({ "id": "a" })));
        send(&ours, request.as_bytes(), Some(file.as_fd())).await.unwrap();
        theirs.readable().await.unwrap();
        let mut bytes = [0; 512];
        let mut space = nix::cmsg_space!([RawFd; 2]);
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let fd = theirs.as_raw_fd();
        let got = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let fds: Vec<OwnedFd> = got
            .cmsgs()
            .unwrap()
            .flat_map(|message| match message {
                // SAFETY: the kernel has just made these descriptors for us.
                ControlMessageOwned::ScmRights(fds) => fds
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
                    .collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!((fds.len(), got.bytes), (1, request.len()));
        assert!(request.starts_with("PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: localhost\r\n"));
        assert!(request.ends_with("Content-Length: 10\r\n\r\n{\"id\":\"a\"}"));
    }
}
