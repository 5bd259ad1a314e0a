//! containerd's task service: every verb converts, calls, and converts back.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task as TaskService;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::{self};
use sandbox_core::cgroup::Version;
use sandbox_core::{Error, Id, Kind, Result};
use tokio::sync::Notify;

use crate::events::{Event, Events};
use crate::pod::Pod;
use crate::task::Task;
use crate::tasks::Tasks;
use crate::{convert, metrics};

/// The service of one Pod.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) pod: Arc<Pod>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) events: Events,
    /// Which metrics message the host's cgroups call for.
    pub(crate) version: Version,
    /// Notified when the shim may exit.
    pub(crate) done: Arc<Notify>,
}

/// Runs a verb to its end, even when its caller goes away half-way: what it has begun is then
/// finished or undone.
async fn whole<T: Send + 'static>(
    verb: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(verb).await {
        Ok(result) => result,
        // It panicked, which aborts a release.
        Err(error) => Err(Error::new(Kind::Internal, error.to_string())),
    }
}

impl Service {
    async fn do_create(self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        // The id first: of two calls for one container the second must not touch its bundle.
        let slot = self.tasks.reserve(&Id::new(request.id.as_str())?)?;
        let (role, create) = convert::create(request)?;
        let id = create.id.clone();
        let stdio = create.stdio.clone();
        let bundle = create.bundle.path().to_owned();
        let rootfs = create.rootfs.clone();
        let checkpoint = create.checkpoint.clone();
        let placed = self.pod.create(&role, create).await?;
        let pid = placed.created.container.pid();
        self.events.send(Event::Created {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            rootfs,
            stdio: stdio.clone(),
            checkpoint: checkpoint.map(|path| path.display().to_string()).unwrap_or_default(),
            pid,
        });
        slot.fill(Arc::new(Task::new(id, bundle, placed, stdio, self.events.clone())));
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn do_delete(self, request: DeleteRequest) -> Result<DeleteResponse> {
        let task = self.tasks.get(&request.id)?;
        if !request.exec_id.is_empty() {
            let (pid, exit) = task.delete_exec(&request.exec_id).await?;
            return Ok(convert::deleted(pid, exit));
        }
        let (pid, exit) = task.delete().await?;
        self.tasks.remove(&request.id);
        Ok(convert::deleted(pid, exit))
    }

    /// Stops the Pod and releases all that its containers hold. Every step runs even if one fails.
    pub(crate) async fn stop(&self) -> Result<()> {
        let mut result = self.pod.stop().await;
        for task in self.tasks.all() {
            result = result.and(task.discard().await);
        }
        result.and(self.pod.vacate().await)
    }

    async fn do_kill(&self, request: KillRequest) -> Result<()> {
        let signal = convert::signal(request.signal)?;
        let process = self.tasks.get(&request.id)?.process(&request.exec_id)?;
        process.kill(signal, request.all).await
    }

    async fn do_resize(&self, request: ResizePtyRequest) -> Result<()> {
        let size = convert::terminal_size(&request)?;
        self.tasks.get(&request.id)?.process(&request.exec_id)?.resize(size).await
    }

    async fn do_close_io(&self, request: CloseIORequest) -> Result<()> {
        let process = self.tasks.get(&request.id)?.process(&request.exec_id)?;
        if request.stdin { process.close_stdin().await } else { Ok(()) }
    }

    async fn do_checkpoint(&self, request: CheckpointTaskRequest) -> Result<()> {
        let (path, exit) = convert::checkpoint(&request)?;
        self.tasks.get(&request.id)?.checkpoint(path, exit).await
    }

    async fn do_stats(&self, request: StatsRequest) -> Result<StatsResponse> {
        let stats = self.tasks.get(&request.id)?.container().stats().await?;
        let any = metrics::encode(&stats, self.version)?;
        Ok(StatsResponse { stats: Some(any).into(), ..StatsResponse::default() })
    }

    fn do_connect(&self, request: &ConnectRequest) -> ConnectResponse {
        ConnectResponse {
            shim_pid: std::process::id(),
            // Asked for tasks that do not exist yet as well: then there is no process.
            task_pid: self.tasks.find(&request.id).map_or(0, |task| task.pid()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        }
    }
}

/// Logs a failed verb, and gives it its status code.
fn answer<T>(verb: &str, id: &str, result: Result<T>) -> ttrpc::Result<T> {
    result.map_err(|error: Error| {
        // Absence is an everyday answer.
        let level =
            if error.kind() == Kind::NotFound { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{verb} {id}: {error:?}");
        convert::status(&error)
    })
}

fn empty<T>(result: ttrpc::Result<T>) -> ttrpc::Result<Empty> {
    result.map(|_| Empty::default())
}

#[async_trait]
impl TaskService for Service {
    async fn state(&self, _: &TtrpcContext, req: StateRequest) -> ttrpc::Result<StateResponse> {
        let snapshot = self.tasks.get(&req.id).and_then(|task| task.snapshot(&req.exec_id));
        answer("state", &req.id, snapshot.map(convert::state))
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        req: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let id = req.id.clone();
        answer("create", &id, whole(self.clone().do_create(req)).await)
    }

    async fn start(&self, _: &TtrpcContext, req: StartRequest) -> ttrpc::Result<StartResponse> {
        let started = async { self.tasks.get(&req.id)?.start(&req.exec_id).await };
        let pid = answer("start", &req.id, started.await)?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let id = req.id.clone();
        answer("delete", &id, whole(self.clone().do_delete(req)).await)
    }

    async fn pids(&self, _: &TtrpcContext, req: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let listed = async { self.tasks.get(&req.id)?.pids().await };
        answer("pids", &req.id, listed.await.map(convert::pids))
    }

    async fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> ttrpc::Result<Empty> {
        let paused = async { self.tasks.get(&req.id)?.pause().await };
        empty(answer("pause", &req.id, paused.await))
    }

    async fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> ttrpc::Result<Empty> {
        let resumed = async { self.tasks.get(&req.id)?.resume().await };
        empty(answer("resume", &req.id, resumed.await))
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        req: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        empty(answer("checkpoint", &id, self.do_checkpoint(req).await))
    }

    async fn kill(&self, _: &TtrpcContext, req: KillRequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        empty(answer("kill", &id, self.do_kill(req).await))
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        let added =
            self.tasks.get(&id).map(|task| async move { task.exec(convert::exec(req)?).await });
        let added = match added {
            Ok(added) => whole(added).await,
            Err(error) => Err(error),
        };
        empty(answer("exec", &id, added))
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        empty(answer("resize", &id, self.do_resize(req).await))
    }

    async fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        empty(answer("close stdin", &id, self.do_close_io(req).await))
    }

    async fn update(&self, _: &TtrpcContext, req: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let updated = async {
            let resources = convert::resources(&req)?;
            self.tasks.get(&req.id)?.container().update(&resources).await
        };
        empty(answer("update", &req.id, updated.await))
    }

    async fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.tasks.get(&req.id).and_then(|task| task.process(&req.exec_id));
        let process = answer("wait", &req.id, process)?;
        Ok(convert::waited(process.exited().await))
    }

    async fn stats(&self, _: &TtrpcContext, req: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let id = req.id.clone();
        answer("stats", &id, self.do_stats(req).await)
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        req: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        Ok(self.do_connect(&req))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // Asked after every deletion; the shim ends with its last container.
        if self.tasks.is_empty() {
            self.done.notify_one();
        }
        Ok(Empty::default())
    }
}

#[cfg(test)]
mod tests;
