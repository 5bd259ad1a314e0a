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
use sandbox_core::{Error, Id, Kind, Result};
use sandbox_host::cgroup::Version;
use tokio::sync::Notify;
use tracing::Instrument;

use crate::events::{Event, Events};
use crate::pod::Pod;
use crate::role::Role;
use crate::task::Task;
use crate::tasks::Tasks;
use crate::wire::{convert, metrics, options};

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
    match tokio::spawn(verb.in_current_span()).await {
        Ok(result) => result,
        // It panicked, which aborts a release.
        Err(error) => Err(Error::new(Kind::Internal, error.to_string())),
    }
}

impl Service {
    async fn do_create(self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        // The id first: of two calls for one container the second must not touch its bundle.
        let slot = self.tasks.reserve(&Id::new(request.id.as_str())?)?;
        let unused = request.options.as_ref().map(options::without_effect).unwrap_or_default();
        let (role, create) = convert::create(request)?;
        // Once for a Pod.
        if !unused.is_empty() && !matches!(role, Role::Member { .. }) {
            let unused = unused.join(", ");
            tracing::warn!("the runtime options {unused} concern runc alone and have no effect");
        }
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

    async fn do_exec(self, request: ExecProcessRequest) -> Result<()> {
        let task = self.tasks.get(&request.id)?;
        task.exec(convert::exec(request)?).await
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

/// Runs a call in a span of its own, which every line that it logs names; logs its failure, and
/// returns its status code.
async fn call<T>(
    verb: &'static str,
    container: &str,
    exec: &str,
    call: impl Future<Output = Result<T>>,
) -> ttrpc::Result<T> {
    let exec = (!exec.is_empty()).then_some(exec);
    let span = tracing::info_span!("call", verb, container, exec);
    async {
        call.await.map_err(|error| {
            let kind = error.kind();
            // Absence is an everyday answer.
            if kind == Kind::NotFound {
                tracing::debug!(?kind, "{error}");
            } else {
                tracing::warn!(?kind, "{error}");
            }
            convert::status(&error)
        })
    }
    .instrument(span)
    .await
}

#[async_trait]
impl TaskService for Service {
    async fn state(&self, _: &TtrpcContext, req: StateRequest) -> ttrpc::Result<StateResponse> {
        let snapshot = async { self.tasks.get(&req.id)?.snapshot(&req.exec_id) };
        call("state", &req.id, &req.exec_id, snapshot).await.map(convert::state)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        req: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let id = req.id.clone();
        call("create", &id, "", whole(self.clone().do_create(req))).await
    }

    async fn start(&self, _: &TtrpcContext, req: StartRequest) -> ttrpc::Result<StartResponse> {
        let started = async { self.tasks.get(&req.id)?.start(&req.exec_id).await };
        let pid = call("start", &req.id, &req.exec_id, started).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let id = req.id.clone();
        let exec = req.exec_id.clone();
        call("delete", &id, &exec, whole(self.clone().do_delete(req))).await
    }

    async fn pids(&self, _: &TtrpcContext, req: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let listed = async { Ok(self.tasks.get(&req.id)?.pids()) };
        call("pids", &req.id, "", listed).await.map(convert::pids)
    }

    async fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> ttrpc::Result<Empty> {
        let paused = async { self.tasks.get(&req.id)?.pause().await };
        call("pause", &req.id, "", paused).await.map(|()| Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> ttrpc::Result<Empty> {
        let resumed = async { self.tasks.get(&req.id)?.resume().await };
        call("resume", &req.id, "", resumed).await.map(|()| Empty::default())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        req: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        call("checkpoint", &id, "", self.do_checkpoint(req)).await.map(|()| Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, req: KillRequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        let exec = req.exec_id.clone();
        call("kill", &id, &exec, self.do_kill(req)).await.map(|()| Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        let exec = req.exec_id.clone();
        call("exec", &id, &exec, whole(self.clone().do_exec(req))).await.map(|()| Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        let exec = req.exec_id.clone();
        call("resize", &id, &exec, self.do_resize(req)).await.map(|()| Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> ttrpc::Result<Empty> {
        let id = req.id.clone();
        let exec = req.exec_id.clone();
        call("close stdin", &id, &exec, self.do_close_io(req)).await.map(|()| Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, req: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let updated = async {
            let resources = convert::resources(&req)?;
            self.tasks.get(&req.id)?.container().update(&resources).await
        };
        call("update", &req.id, "", updated).await.map(|()| Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exited = async { Ok(self.tasks.get(&req.id)?.process(&req.exec_id)?.exited().await) };
        call("wait", &req.id, &req.exec_id, exited).await.map(convert::waited)
    }

    async fn stats(&self, _: &TtrpcContext, req: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let id = req.id.clone();
        call("stats", &id, "", self.do_stats(req)).await
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        req: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        Ok(self.do_connect(&req))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // Called after every deletion; the shim exits with its last container.
        if self.tasks.is_empty() {
            self.done.notify_one();
        }
        Ok(Empty::default())
    }
}

#[cfg(test)]
mod tests;
