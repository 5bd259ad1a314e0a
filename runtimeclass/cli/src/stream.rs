//! Streams into a container: `exec -i`, `exec -t` and `attach`.

mod frame;
mod terminal;

use std::io::{self, Read as _};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::signals::Signals;
use frame::Kind;
use terminal::RawTerminal;

/// Deadline of the server's answer to the request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Upper bound on the server's frames: it copies in portions of 32 KiB.
const LARGEST_FRAME: usize = 4 * 1024 * 1024;
/// The largest answer to the upgrade request.
const LARGEST_ANSWER: usize = 64 * 1024;

const ERROR: u32 = 1;
const STDOUT: u32 = 3;
const STDERR: u32 = 5;
const STDIN: u32 = 7;
const RESIZE: u32 = 9;

/// Why streams could not be opened, or broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The runtime's streaming server is not reachable this way.
    #[error(
        "cannot use the stream at {0:?}: only http:// is understood; turn TLS streaming off in the runtime"
    )]
    Url(String),
    /// The server is not reachable.
    #[error("cannot reach the runtime's streaming server at {address}")]
    Connect {
        /// Its host and port.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The server does not switch protocols.
    #[error("the runtime's streaming server refuses: {0}")]
    Refused(String),
    /// The connection broke.
    #[error("the stream broke")]
    Broken(#[source] io::Error),
    /// A frame is too large.
    #[error("the runtime's streaming server sends a frame of {0} bytes")]
    Large(usize),
    /// The command could not be run, or its exit code is unknown.
    #[error("{0}")]
    Status(String),
    /// This program's own terminal or output fails.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
}

/// Which streams are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

/// Connects this program's streams with those at `url`; returns the command's exit code.
pub(crate) async fn run(url: &str, wanted: Wanted) -> Result<u8, StreamError> {
    let (address, path) = split(url)?;
    let dial = upgrade(address, path);
    let connection = match tokio::time::timeout(PATIENCE, dial).await {
        Ok(connection) => connection?,
        Err(_) => {
            return Err(StreamError::Refused(format!("no answer in {} s", PATIENCE.as_secs())));
        }
    };
    let (reader, mut writer) = connection;
    writer.write_all(&opening(wanted)).await.map_err(StreamError::Broken)?;
    let raw = if wanted.tty && wanted.stdin { RawTerminal::enter() } else { Ok(None) };
    let raw = raw.map_err(StreamError::Terminal)?;
    let (control, control_frames) = mpsc::unbounded_channel();
    let (input, input_frames) = mpsc::channel(4);
    tokio::spawn(write(writer, control_frames, input_frames));
    if wanted.stdin {
        // A thread: reads of a terminal cannot be cancelled, and must not delay this program's exit.
        std::thread::spawn(move || read_input(&input));
    }
    let mut signals = Signals::catch().map_err(StreamError::Terminal)?;
    let result = tokio::select! {
        result = receive(reader, &control) => result,
        result = resize(&control, wanted) => result,
        caught = signals.next() => Ok(caught.exit_code),
    };
    drop(raw);
    result
}

fn split(url: &str) -> Result<(&str, &str), StreamError> {
    let rest = url.strip_prefix("http://").ok_or_else(|| StreamError::Url(url.to_owned()))?;
    let at = rest.find('/').ok_or_else(|| StreamError::Url(url.to_owned()))?;
    Ok(rest.split_at(at))
}

type Connection = (BufReader<OwnedReadHalf>, OwnedWriteHalf);

async fn upgrade(address: &str, path: &str) -> Result<Connection, StreamError> {
    let dialled = TcpStream::connect(address).await;
    let stream =
        dialled.map_err(|source| StreamError::Connect { address: address.to_owned(), source })?;
    stream.set_nodelay(true).map_err(StreamError::Broken)?;
    let (reader, mut writer) = stream.into_split();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    writer.write_all(request.as_bytes()).await.map_err(StreamError::Broken)?;
    let mut reader = BufReader::new(reader);
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        let read = reader.read_line(&mut answer).await.map_err(StreamError::Broken)?;
        if read == 0 || answer.len() > LARGEST_ANSWER {
            return Err(StreamError::Refused(answer.trim_end().to_owned()));
        }
    }
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("101") {
        Ok((reader, writer))
    } else {
        Err(StreamError::Refused(status.to_owned()))
    }
}

/// The frames that open every stream; the server waits for exactly those that were requested.
fn opening(wanted: Wanted) -> Vec<u8> {
    let mut streams = vec![(ERROR, "error"), (STDOUT, "stdout")];
    if !wanted.tty {
        streams.push((STDERR, "stderr"));
    }
    if wanted.stdin {
        streams.push((STDIN, "stdin"));
    }
    if wanted.tty {
        streams.push((RESIZE, "resize"));
    }
    let frame = |&(id, kind): &(u32, &str)| frame::open(id, "streamtype", kind, id == ERROR);
    streams.iter().flat_map(frame).collect()
}

/// Writes frames until the connection breaks, which the reading side reports. Control frames go first.
async fn write(
    mut writer: OwnedWriteHalf,
    mut control: mpsc::UnboundedReceiver<Vec<u8>>,
    mut input: mpsc::Receiver<Vec<u8>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = control.recv() => frame,
            Some(frame) = input.recv() => frame,
            else => return,
        };
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

fn read_input(frames: &mpsc::Sender<Vec<u8>>) {
    let mut stdin = io::stdin().lock();
    let mut bytes = vec![0; frame::LARGEST_DATA];
    loop {
        let read = match stdin.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A read error counts as the end of the input.
            result => result.unwrap_or_default(),
        };
        let frame = frame::data(STDIN, &bytes[..read], read == 0);
        if frames.blocking_send(frame).is_err() || read == 0 {
            return;
        }
    }
}

/// Sends the terminal's size now and after each change; never returns by itself.
async fn resize(
    control: &mpsc::UnboundedSender<Vec<u8>>,
    wanted: Wanted,
) -> Result<u8, StreamError> {
    let mut changes = signal(SignalKind::window_change()).map_err(StreamError::Terminal)?;
    if !wanted.tty {
        return std::future::pending().await;
    }
    loop {
        if let Some(size) = terminal::size() {
            // Fails only when the connection is gone, which the reading side reports.
            let _gone = control.send(frame::data(RESIZE, size.as_bytes(), false));
        }
        changes.recv().await;
    }
}

/// Prints the streams until the command's status is known.
async fn receive(
    mut reader: BufReader<OwnedReadHalf>,
    control: &mpsc::UnboundedSender<Vec<u8>>,
) -> Result<u8, StreamError> {
    let mut status = Vec::new();
    loop {
        let mut head = [0; frame::HEAD];
        match reader.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return exit_code(&status);
            }
            result => result.map_err(StreamError::Broken)?,
        };
        let (kind, length) = frame::head(head);
        if length > LARGEST_FRAME {
            return Err(StreamError::Large(length));
        }
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await.map_err(StreamError::Broken)?;
        match kind {
            Kind::Data { stream: STDOUT, .. } => show(io::stdout().lock(), &payload)?,
            Kind::Data { stream: STDERR, .. } => show(io::stderr().lock(), &payload)?,
            Kind::Data { stream: ERROR, fin } => {
                status.extend_from_slice(&payload);
                if fin {
                    return exit_code(&status);
                }
            }
            Kind::Reset if payload.starts_with(&ERROR.to_be_bytes()) => return exit_code(&status),
            Kind::GoAway => return exit_code(&status),
            Kind::Ping => {
                // As above: a lost connection is reported by the next read.
                let _gone = control.send(frame::ping(&payload));
            }
            Kind::Data { .. } | Kind::Reset | Kind::Other => {}
        }
    }
}

fn show(mut stream: impl io::Write, bytes: &[u8]) -> Result<(), StreamError> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(StreamError::Terminal)
}

/// The exit code in the status at the end of the error stream: a Kubernetes `Status` object.
fn exit_code(status: &[u8]) -> Result<u8, StreamError> {
    let text = || String::from_utf8_lossy(status).into_owned();
    let unknown = "the stream closed before the command's exit code was known";
    let status: Value = match serde_json::from_slice(status) {
        Ok(status) => status,
        Err(_) if status.is_empty() => return Err(StreamError::Status(unknown.to_owned())),
        Err(_) => return Err(StreamError::Status(text())),
    };
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse::<i32>().ok()) {
        Some(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        None => Err(StreamError::Status(status["message"].as_str().unwrap_or(unknown).to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let code = |text: &str| exit_code(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(code(r#"{"metadata":{},"status":"Success"}"#), Ok(0));
        let failure = r#"{"status":"Failure","message":"command terminated with non-zero exit code","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(code(failure), Ok(7));
        assert_eq!(
            code(r#"{"status":"Failure","message":"no such container"}"#),
            Err("no such container".into())
        );
        assert_eq!(code("plain words"), Err("plain words".into()));
        assert_eq!(
            code(""),
            Err("the stream closed before the command's exit code was known".into())
        );
    }

    #[test]
    fn urls() {
        assert_eq!(split("http://127.0.0.1:1/exec/T").unwrap(), ("127.0.0.1:1", "/exec/T"));
        for url in ["https://127.0.0.1:1/exec/T", "http://127.0.0.1:1", "/exec/T"] {
            assert!(matches!(split(url), Err(StreamError::Url(it)) if it == url));
        }
    }
}
