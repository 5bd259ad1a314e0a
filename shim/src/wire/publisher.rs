//! Forwards the shim's events to containerd.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{ForwardRequest, Mount};
use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
    TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::{topics, ttrpc};
use sandbox_core::{Exit, Id, RootfsMount, StdioPaths};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::events::{Event, Events};
use crate::wire::convert;

/// The bound on one call.
const CALL: Duration = Duration::from_secs(5);

/// How long to wait before the next try, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The task that empties the queue. It ends when every [`Events`] is gone and all is sent.
#[derive(Debug)]
pub(crate) struct Publisher {
    task: JoinHandle<()>,
}

impl Publisher {
    /// Starts to forward to containerd's ttrpc `address`; without one events go nowhere.
    pub(crate) fn start(address: Option<String>, namespace: &Id) -> (Events, Self) {
        let (events, receiver) = Events::queue();
        let namespace = namespace.to_string();
        let task = tokio::spawn(async move {
            match address {
                Some(address) => forward_all(receiver, address, namespace).await,
                None => discard_all(receiver).await,
            }
        });
        (events, Self { task })
    }

    /// Waits until all is sent, at most `patience`.
    pub(crate) async fn finish(mut self, patience: Duration) {
        if tokio::time::timeout(patience, &mut self.task).await.is_err() {
            tracing::warn!("containerd is away; the last events are lost");
            self.task.abort();
        }
    }
}

async fn discard_all(mut receiver: mpsc::Receiver<(SystemTime, Event)>) {
    while receiver.recv().await.is_some() {}
}

async fn forward_all(
    mut receiver: mpsc::Receiver<(SystemTime, Event)>,
    address: String,
    namespace: String,
) {
    let mut client = None;
    while let Some((at, event)) = receiver.recv().await {
        let mut pause = RETRY.0;
        let request = request(at, &namespace, event);
        while let Err(error) = forward(&mut client, &address, &request).await {
            tracing::debug!("event waits for containerd: {error}");
            client = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }
}

/// Sends one event, connecting first if need be.
async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let connected = match client {
        Some(connected) => connected,
        None => client.insert(EventsClient::new(connect(address).await?)),
    };
    let bound = i64::try_from(CALL.as_nanos()).unwrap_or(i64::MAX);
    match connected.forward(ttrpc::context::with_timeout(bound), request).await {
        // containerd has it, and does not want it: it will not want it later either.
        Err(ttrpc::Error::RpcStatus(status)) if !may_pass(status.code()) => {
            tracing::warn!("containerd refused an event: {}", status.message());
            Ok(())
        }
        result => result.map(drop),
    }
}

/// Whether a call that ended so may go through later.
fn may_pass(code: ttrpc::Code) -> bool {
    matches!(code, ttrpc::Code::DEADLINE_EXCEEDED | ttrpc::Code::UNAVAILABLE)
}

async fn connect(address: &str) -> ttrpc::Result<Client> {
    let uri = match address.contains("://") {
        true => address.to_owned(),
        false => format!("unix://{address}"),
    };
    Client::connect(&uri).await
}

fn request(at: SystemTime, namespace: &str, event: Event) -> ForwardRequest {
    let (topic, any) = message(event);
    let envelope = Envelope {
        timestamp: convert::timestamp(at),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: Some(any).into(),
        ..Envelope::default()
    };
    ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() }
}

/// A message of containerd's package of events. Its name is put together: asked for it, the protobuf
/// crate parses the descriptors of all that the package imports, 300 KiB that every shim would keep.
fn packed<M: Message>(message: &M) -> Any {
    Any {
        type_url: format!("containerd.events.{}", M::NAME),
        // Writing to memory cannot fail.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

/// An event's topic and message (containerd's `api/events/task.proto`).
fn message(event: Event) -> (&'static str, Any) {
    let container_id = event.container().to_string();
    match event {
        Event::Created { bundle, rootfs, stdio, checkpoint, pid, .. } => (
            topics::TASK_CREATE_EVENT_TOPIC,
            packed(&TaskCreate {
                container_id,
                bundle,
                rootfs: rootfs.into_iter().map(mount).collect(),
                io: Some(io(stdio)).into(),
                checkpoint,
                pid,
                ..Default::default()
            }),
        ),
        Event::Started { pid, .. } => (
            topics::TASK_START_EVENT_TOPIC,
            packed(&TaskStart { container_id, pid, ..Default::default() }),
        ),
        Event::ExecAdded { exec, .. } => {
            let exec_id = exec.into();
            let added = TaskExecAdded { container_id, exec_id, ..Default::default() };
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, packed(&added))
        }
        Event::ExecStarted { exec, pid, .. } => {
            let exec_id = exec.into();
            let started = TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
            (topics::TASK_EXEC_STARTED_EVENT_TOPIC, packed(&started))
        }
        Event::Oom { .. } => {
            (topics::TASK_OOM_EVENT_TOPIC, packed(&TaskOOM { container_id, ..Default::default() }))
        }
        Event::Paused { .. } => (
            topics::TASK_PAUSED_EVENT_TOPIC,
            packed(&TaskPaused { container_id, ..Default::default() }),
        ),
        Event::Resumed { .. } => (
            topics::TASK_RESUMED_EVENT_TOPIC,
            packed(&TaskResumed { container_id, ..Default::default() }),
        ),
        Event::Checkpointed { path: checkpoint, .. } => (
            topics::TASK_CHECKPOINTED_EVENT_TOPIC,
            packed(&TaskCheckpointed { container_id, checkpoint, ..Default::default() }),
        ),
        Event::Exited { exec, pid, exit, .. } => ended(container_id, exec, pid, exit),
        Event::Deleted { exec, pid, exit, .. } => removed(container_id, exec, pid, exit),
    }
}

fn ended(container_id: String, exec: Option<Id>, pid: u32, exit: Exit) -> (&'static str, Any) {
    let message = TaskExit {
        // An exec's own id, or the container's for its first process.
        id: exec.map_or_else(|| container_id.clone(), String::from),
        container_id,
        pid,
        exit_status: exit.status,
        exited_at: convert::timestamp(exit.at),
        ..Default::default()
    };
    (topics::TASK_EXIT_EVENT_TOPIC, packed(&message))
}

fn removed(container_id: String, exec: Option<Id>, pid: u32, exit: Exit) -> (&'static str, Any) {
    let message = TaskDelete {
        container_id,
        id: exec.map(String::from).unwrap_or_default(),
        pid,
        exit_status: exit.status,
        exited_at: convert::timestamp(exit.at),
        ..Default::default()
    };
    (topics::TASK_DELETE_EVENT_TOPIC, packed(&message))
}

fn mount(mount: RootfsMount) -> Mount {
    Mount { type_: mount.kind, source: mount.source, options: mount.options, ..Mount::default() }
}

fn io(stdio: StdioPaths) -> TaskIO {
    TaskIO {
        stdin: stdio.stdin.unwrap_or_default(),
        stdout: stdio.stdout.unwrap_or_default(),
        stderr: stdio.stderr.unwrap_or_default(),
        terminal: stdio.terminal,
        ..TaskIO::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_package() {
        use containerd_shim_protos::protobuf::MessageFull;
        assert_eq!(packed(&TaskOOM::default()).type_url, TaskOOM::descriptor().full_name());
        assert_eq!(packed(&TaskIO::default()).type_url, TaskIO::descriptor().full_name());
    }

    #[test]
    fn exits_name_the_exec_or_the_container() {
        let id = Id::new("c").unwrap();
        let exit = Exit::now(3);
        for (exec, expected) in [(None, "c"), (Some(Id::new("e").unwrap()), "e")] {
            let event = Event::Exited { id: id.clone(), exec, pid: 7, exit };
            let request = request(SystemTime::now(), "ns", event);
            assert_eq!(request.envelope.topic, "/tasks/exit");
            assert_eq!(request.envelope.event.type_url, "containerd.events.TaskExit");
            let message = TaskExit::parse_from_bytes(&request.envelope.event.value).unwrap();
            assert_eq!((message.id.as_str(), message.exit_status), (expected, 3));
        }
    }
}
