//! The events containerd and its clients follow, sent in order.
//!
//! They are queued, so that containerd may be away (restarted, upgraded) while containers go on:
//! what happened meanwhile is sent once it is back.

use std::time::SystemTime;

use sandbox_core::{Exit, Id, RootfsMount, StdioPaths};
use tokio::sync::mpsc;

/// Events kept while containerd is away; what comes after them is dropped and logged.
const QUEUE: usize = 4096;

/// Something that happened to a task.
#[derive(Debug)]
pub(crate) enum Event {
    Created {
        id: Id,
        bundle: String,
        rootfs: Vec<RootfsMount>,
        stdio: StdioPaths,
        checkpoint: String,
        pid: u32,
    },
    Started {
        id: Id,
        pid: u32,
    },
    ExecAdded {
        id: Id,
        exec: Id,
    },
    ExecStarted {
        id: Id,
        exec: Id,
        pid: u32,
    },
    /// The container's first process, or the named exec, has exited.
    Exited {
        id: Id,
        exec: Option<Id>,
        pid: u32,
        exit: Exit,
    },
    Oom {
        id: Id,
    },
    Paused {
        id: Id,
    },
    Resumed {
        id: Id,
    },
    Checkpointed {
        id: Id,
        path: String,
    },
    Deleted {
        id: Id,
        exec: Option<Id>,
        pid: u32,
        exit: Exit,
    },
}

/// The queue's entrance. Sending never waits.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<(SystemTime, Event)>,
}

impl Events {
    /// A queue and its other end.
    pub(crate) fn queue() -> (Self, mpsc::Receiver<(SystemTime, Event)>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, receiver)
    }

    /// Queues an event.
    pub(crate) fn send(&self, event: Event) {
        if let Err(error) = self.queue.try_send((SystemTime::now(), event)) {
            tracing::error!("event lost, {QUEUE} wait already: {error}");
        }
    }
}

impl Event {
    /// The container that it happened to.
    pub(crate) fn container(&self) -> &Id {
        match self {
            Self::Created { id, .. }
            | Self::Started { id, .. }
            | Self::ExecAdded { id, .. }
            | Self::ExecStarted { id, .. }
            | Self::Exited { id, .. }
            | Self::Oom { id }
            | Self::Paused { id }
            | Self::Resumed { id }
            | Self::Checkpointed { id, .. }
            | Self::Deleted { id, .. } => id,
        }
    }
}
