//! cloud-hypervisor's event monitor: JSON objects, each followed by a blank line.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;

/// The end of an event.
const END: &[u8] = b"\n\n";
/// The longest event, in bytes.
const EVENT_MAX: usize = 64 * 1024;

/// An event, without the fields that are not used.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Event {
    source: String,
    event: String,
    properties: Option<HashMap<String, String>>,
}

/// Pending removals, by device.
type Waiting = HashMap<String, oneshot::Sender<()>>;

/// Pending removals of devices; `None` once the event stream has ended.
#[derive(Debug, Clone)]
pub(super) struct Removals(Arc<Mutex<Option<Waiting>>>);

impl Removals {
    /// None are pending.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(HashMap::new()))))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.lock()
    }

    /// Resolves when `device` has been removed, or with an error when the event stream ends.
    pub(super) fn of(&self, device: &str) -> oneshot::Receiver<()> {
        let (sender, gone) = oneshot::channel();
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.insert(device.to_owned(), sender);
        }
        gone
    }

    fn gone(&self, device: &str) {
        let sender = self.waiting().as_mut().and_then(|waiting| waiting.remove(device));
        if let Some(sender) = sender {
            // The receiver may have timed out just now.
            let _ = sender.send(());
        }
    }
}

/// Follows the events until the VMM closes the stream (`false`) or the VM reboots (`true`). A Pod's
/// VM is not rebooted: it ends with its guest.
pub(super) async fn follow(mut monitor: impl AsyncRead + Unpin, removals: &Removals) -> bool {
    let mut bytes = Vec::new();
    let restarts = loop {
        match next(&mut monitor, &mut bytes).await {
            Ok(event) if event.source == "vm" && event.event == "rebooting" => break true,
            Ok(event) => happened(&event, removals),
            Err(error) => {
                tracing::debug!("the event stream of cloud-hypervisor has ended: {error}");
                break false;
            }
        }
    };
    // Dropping the senders wakes all waiters with an error.
    *removals.waiting() = None;
    restarts
}

fn happened(event: &Event, removals: &Removals) {
    let property = |name: &str| event.properties.as_ref().and_then(|all| all.get(name));
    match (event.source.as_str(), event.event.as_str()) {
        ("vm", "device-removed") => {
            if let Some(id) = property("id") {
                removals.gone(id);
            }
        }
        ("guest", "panic") | ("vm" | "vmm", "shutdown") => {
            tracing::info!(source = event.source, event = event.event, "VM event");
        }
        (source, event) => tracing::debug!(source, event, "VM event"),
    }
}

async fn next(monitor: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<Event> {
    loop {
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            let event = serde_json::from_slice(&bytes[..at])?;
            bytes.drain(..at + END.len());
            return Ok(event);
        }
        if bytes.len() > EVENT_MAX {
            return Err(io::Error::other("an event is too long"));
        }
        if monitor.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// As cloud-hypervisor 53 writes them.
    const EVENTS: &str = r#"{
  "timestamp": {
    "secs": 0,
    "nanos": 2102921
  },
  "source": "vmm",
  "event": "starting",
  "properties": null
}

{
  "timestamp": {
    "secs": 9,
    "nanos": 1
  },
  "source": "vm",
  "event": "device-removed",
  "properties": {
    "bdf": "0000:00:05.0",
    "id": "dev-a"
  }
}

"#;

    #[tokio::test]
    async fn reports_removals_and_reboots() {
        let (mut writer, reader) = tokio::io::duplex(16);
        let removals = Removals::new();
        let gone = removals.of("dev-a");
        let other = removals.of("dev-b");
        let follower = removals.clone();
        let follow = tokio::spawn(async move { follow(reader, &follower).await });
        writer.write_all(EVENTS.as_bytes()).await.unwrap();
        gone.await.unwrap();
        let restart = r#"{"source": "vm", "event": "rebooting", "properties": null}"#;
        writer.write_all(restart.as_bytes()).await.unwrap();
        writer.write_all(END).await.unwrap();
        assert!(follow.await.unwrap());
        assert!(other.await.is_err() && removals.of("dev-c").await.is_err());
    }

    #[tokio::test]
    async fn ends_with_the_vmm() {
        assert!(!follow(&b"{\"source\": \"vm\""[..], &Removals::new()).await);
        assert!(!follow(&b"nonsense\n\n"[..], &Removals::new()).await);
    }
}
