//! QEMU's machine protocol (QMP): one JSON object per line over a unix stream socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::DriverError;
use crate::socket::send;

/// The program's name in errors.
const PROGRAM: &str = "qemu";
/// Maximum length of a line in bytes.
const LINE_MAX: u64 = 1 << 20;

/// A connection that accepts commands.
#[derive(Debug)]
pub(crate) struct Qmp {
    write: tokio::sync::Mutex<tokio::net::unix::OwnedWriteHalf>,
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
    deadline: Duration,
    reader: JoinHandle<()>,
}

/// QEMU's version in its greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) micro: u32,
}

/// Pending commands and removals.
#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    replies: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    unplugs: HashMap<String, oneshot::Sender<Result<(), String>>>,
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: Version,
}

/// A line after the greeting: a reply or an event.
#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Reads the greeting and enables commands; each has `deadline`.
    pub(crate) async fn start(
        stream: UnixStream,
        deadline: Duration,
    ) -> Result<(Self, Version), DriverError> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let line = next_line(&mut read).await.map_err(|e| failed(e, "its greeting"))?;
        let greeting: Greeting =
            serde_json::from_slice(&line).map_err(|e| answer("its greeting", e))?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let reader = tokio::spawn(dispatch(read, Arc::clone(&waiting)));
        let write = tokio::sync::Mutex::new(write);
        let qmp = Self { write, waiting, next: AtomicU64::new(1), deadline, reader };
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok((qmp, greeting.qmp.version.qemu))
    }

    /// Runs a command and returns its result.
    pub(crate) async fn call(&self, command: &str, args: Value) -> Result<Value, DriverError> {
        self.call_with(command, args, None).await
    }

    /// Runs a command, passing it a file descriptor.
    pub(crate) async fn call_with(
        &self,
        command: &str,
        args: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, DriverError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "execute": command, "arguments": args, "id": id }).to_string();
        line.push('\n');
        let (sender, reply) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(closed(command));
            }
            waiting.replies.insert(id, sender);
        }
        let exchange = async {
            {
                let write = self.write.lock().await;
                send((*write).as_ref(), line.as_bytes(), fd)
                    .await
                    .map_err(|e| failed(e, command))?;
            }
            reply.await.map_err(|_| closed(command))
        };
        let answer = tokio::time::timeout(self.deadline, exchange).await;
        self.waiting.lock().replies.remove(&id);
        match answer {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(message))) => {
                Err(DriverError::Refused { program: PROGRAM, call: command.to_owned(), message })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DriverError::Deadline {
                program: PROGRAM,
                step: format!("answer {command}"),
                after: self.deadline,
            }),
        }
    }

    /// Unplugs a device and waits until the guest has released it.
    pub(crate) async fn unplug(&self, device: &str) -> Result<(), DriverError> {
        let (sender, gone) = oneshot::channel();
        self.waiting.lock().unplugs.insert(device.to_owned(), sender);
        let exchange = async {
            match self.call("device_del", json!({ "id": device })).await {
                // An earlier request is still pending in the guest.
                Err(DriverError::Refused { message, .. }) if message.contains("unplug") => {}
                other => drop(other?),
            }
            gone.await.map_err(|_| closed("device_del"))
        };
        let answer = tokio::time::timeout(self.deadline, exchange).await;
        self.waiting.lock().unplugs.remove(device);
        match answer {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(message))) => {
                let call = format!("device_del {device}");
                Err(DriverError::Refused { program: "the guest", call, message })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DriverError::Deadline {
                program: "the guest",
                step: format!("release {device}"),
                after: self.deadline,
            }),
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Dispatches replies and events to their waiters until the connection closes.
async fn dispatch(mut read: BufReader<OwnedReadHalf>, waiting: Arc<Mutex<Waiting>>) {
    loop {
        let line = match next_line(&mut read).await {
            Ok(line) => line,
            Err(error) => {
                tracing::debug!("the QMP connection has ended: {error}");
                break;
            }
        };
        match serde_json::from_slice::<Line>(&line) {
            Ok(line) => take(line, &mut waiting.lock()),
            Err(error) => {
                tracing::error!("closing the QMP connection after an invalid line: {error}");
                break;
            }
        }
    }
    // Dropping the senders wakes all waiters with an error.
    *waiting.lock() = Waiting { closed: true, ..Waiting::default() };
}

fn take(line: Line, waiting: &mut Waiting) {
    if let Some(event) = line.event {
        return happened(&event, &line.data, waiting);
    }
    let Some(sender) = line.id.and_then(|id| waiting.replies.remove(&id)) else {
        return tracing::debug!("QEMU replied to a command that is no longer pending");
    };
    let reply = match line.error {
        Some(refusal) => Err(refusal.desc),
        None => Ok(line.answer.unwrap_or_default()),
    };
    // The receiver may have timed out just now.
    let _ = sender.send(reply);
}

fn happened(event: &str, data: &Value, waiting: &mut Waiting) {
    let device = data.get("device").and_then(Value::as_str);
    let outcome = match event {
        "DEVICE_DELETED" => Ok(()),
        "DEVICE_UNPLUG_GUEST_ERROR" => Err("it did not release the device".to_owned()),
        "SHUTDOWN" | "GUEST_PANICKED" => return tracing::info!(event, %data, "VM event"),
        _ => return tracing::debug!(event, %data, "VM event"),
    };
    if let Some(sender) = device.and_then(|device| waiting.unplugs.remove(device)) {
        // As above.
        let _ = sender.send(outcome);
    }
}

async fn next_line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    read.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    match line.last() {
        Some(b'\n') => Ok(line),
        Some(_) if line.len() as u64 == LINE_MAX => Err(io::ErrorKind::InvalidData.into()),
        Some(_) | None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn closed(call: &str) -> DriverError {
    DriverError::Closed { program: PROGRAM, call: call.to_owned() }
}

fn failed(error: io::Error, call: &str) -> DriverError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => closed(call),
        _ => DriverError::Io { program: PROGRAM, source: error },
    }
}

fn answer(call: &str, reason: impl ToString) -> DriverError {
    DriverError::Answer { program: PROGRAM, call: call.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const GREETING: &[u8] = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}
"#;

    /// Serves one connection: the greeting, then for each command the answer of `script`.
    fn serve(script: fn(&Value) -> String) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            write.write_all(GREETING).await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = if command["execute"] == "qmp_capabilities" {
                    format!("{{\"return\": {{}}, \"id\": {}}}\n", command["id"])
                } else {
                    script(&command)
                };
                if answer == "close" {
                    return;
                }
                write.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        ours
    }

    async fn start(script: fn(&Value) -> String) -> Qmp {
        let (qmp, version) = Qmp::start(serve(script), Duration::from_millis(300)).await.unwrap();
        assert!(version >= Version { major: 7, minor: 2, micro: 0 });
        qmp
    }

    #[tokio::test]
    async fn answers_refusals_and_silence() {
        let qmp = start(|command| match command["execute"].as_str().unwrap() {
            "stop" => format!(
                "{{\"event\": \"STOP\"}}\n{{\"id\": {}, \"return\": {{\"a\": 1}}}}\n",
                command["id"]
            ),
            "cont" => format!(
                "{{\"id\": {}, \"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}}}\n",
                command["id"]
            ),
            "quit" => "close".to_owned(),
            _ => String::new(),
        })
        .await;
        assert_eq!(qmp.call("stop", json!({})).await.unwrap()["a"], 1);
        let refused = qmp.call("cont", json!({})).await.unwrap_err();
        assert_eq!(refused.to_string(), "qemu refused cont: no");
        let silent = qmp.call("query-status", json!({})).await.unwrap_err();
        assert_eq!(silent.to_string(), "qemu did not answer query-status within 0.3 s");
        let closed = qmp.call("quit", json!({})).await.unwrap_err();
        assert_eq!(closed.to_string(), "qemu closed the connection during quit");
        let after = qmp.call("stop", json!({})).await.unwrap_err();
        assert!(matches!(after, DriverError::Closed { .. }));
    }

    #[tokio::test]
    async fn an_unplug_waits_for_the_guest() {
        let qmp = start(|command| {
            let done = format!("{{\"id\": {}, \"return\": {{}}}}\n", command["id"]);
            let event = |name: &str| {
                format!("{{\"event\": \"{name}\", \"data\": {{\"device\": \"d1\"}}}}\n")
            };
            match command["arguments"]["id"].as_str() {
                Some("d1") => format!("{done}{}", event("DEVICE_DELETED")),
                Some("d2") => format!("{done}{}", event("DEVICE_DELETED")),
                _ => done,
            }
        })
        .await;
        qmp.unplug("d1").await.unwrap();
        // d1's event says nothing about d2.
        let late = qmp.unplug("d2").await.unwrap_err();
        assert_eq!(late.to_string(), "the guest did not release d2 within 0.3 s");
    }
}
