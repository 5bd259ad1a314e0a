//! The `agent-api` service: checks the host's requests, passes them on and returns the responses.

use std::path::Path;
use std::sync::Arc;

use agent_api::agent as api;
use agent_api::agent_ttrpc::Agent;
use agent_system::{blocking, online, set_clock};
use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext as Context;

use crate::container::Container;
use crate::containers::check_id;
use crate::error::{Error, Kind, Result, internal, invalid, missing, refused, status};
use crate::sandbox::{self, Sandbox};
use crate::{limits, process, stats};

/// Serves the host's requests.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Sandbox>);

impl Service {
    async fn create(&self, request: api::CreateContainerRequest) -> Result<u32> {
        self.0.require_configured()?;
        let id = request.container.clone();
        self.0.containers.reserve(&id)?;
        // A task of its own: if the host cancels the request, the container is still added or
        // cleaned up.
        let sandbox = self.0.clone();
        let creating = tokio::spawn(async move {
            let created = Container::create(&sandbox.pod, request).await.map(Arc::new);
            match &created {
                Ok(container) => sandbox.containers.insert(id, container.clone()),
                Err(_) => sandbox.containers.remove(&id),
            }
            created
        });
        let created = creating.await.map_err(|error| internal(error.to_string()))??;
        created.init.pid().ok_or_else(|| missing("the process exited before it was started"))
    }

    fn exec(&self, request: &api::ExecRequest) -> Result<()> {
        let reference = request.process.as_ref().ok_or_else(|| invalid("process is missing"))?;
        check_id("exec", &reference.exec)?;
        let stdio = request.stdio.clone().unwrap_or_default();
        let container = self.0.containers.get(&reference.container)?;
        container.add_exec(&reference.exec, &request.spec, &stdio)
    }

    async fn start(&self, reference: api::ProcessRef) -> Result<u32> {
        let container = self.0.containers.get(&reference.container)?;
        if reference.exec.is_empty() {
            return container.start().await;
        }
        // A task of its own, for the same reason as in `create`.
        let pod = self.0.pod.clone();
        let starting =
            tokio::spawn(async move { container.start_exec(&pod, &reference.exec).await });
        starting.await.map_err(|error| internal(error.to_string()))?
    }

    async fn signal(&self, request: api::SignalRequest) -> Result<()> {
        let signal = process::signal(request.signal)?;
        let reference = request.process.as_ref().ok_or_else(|| invalid("process is missing"))?;
        let container = self.0.containers.get(&reference.container)?;
        if !request.all {
            return container.process(&reference.exec)?.signal(&self.0.pod.reaper, signal);
        }
        let cgroup = container.cgroup.clone();
        match blocking(move || cgroup.signal(signal)).await? {
            true => Ok(()),
            false => Err(missing(format!("container {:?} has no process", reference.container))),
        }
    }

    async fn wait(&self, reference: &api::ProcessRef) -> Result<process::Exit> {
        self.0.containers.process(&reference.container, &reference.exec)?.wait().await
    }

    async fn update(&self, request: &api::UpdateRequest) -> Result<()> {
        let settings = limits::settings(&limits::parse(&request.resources)?)?;
        let cgroup = self.0.containers.get(&request.container)?.cgroup.clone();
        blocking(move || cgroup.write_all(&settings)).await
    }

    async fn freeze(&self, container: &str, frozen: bool) -> Result<()> {
        let container = self.0.containers.get(container)?;
        if !container.init.is_running() {
            return Err(refused("the container is not running"));
        }
        let cgroup = container.cgroup.clone();
        blocking(move || cgroup.freeze(frozen)).await
    }

    async fn delete(&self, id: &str) -> Result<()> {
        let container = match self.0.containers.get(id) {
            Ok(container) => container,
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        container.delete().await?;
        self.0.containers.remove(id);
        Ok(())
    }
}

/// An error as a gRPC status.
fn answer<T>(result: Result<T>) -> ttrpc::Result<T> {
    result.map_err(|error: Error| status(&error))
}

fn empty(result: Result<()>) -> ttrpc::Result<api::Empty> {
    answer(result.map(|()| api::Empty::new()))
}

#[async_trait]
impl Agent for Service {
    async fn configure(
        &self,
        _: &Context,
        request: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        answer(self.0.configure(request).await)
    }

    async fn create_container(
        &self,
        _: &Context,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let pid = answer(self.create(request).await)?;
        Ok(api::CreateContainerResponse { pid, ..Default::default() })
    }

    async fn exec(&self, _: &Context, request: api::ExecRequest) -> ttrpc::Result<api::Empty> {
        empty(Service::exec(self, &request))
    }

    async fn start(
        &self,
        _: &Context,
        request: api::ProcessRef,
    ) -> ttrpc::Result<api::StartResponse> {
        let pid = answer(Service::start(self, request).await)?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn signal(&self, _: &Context, request: api::SignalRequest) -> ttrpc::Result<api::Empty> {
        empty(Service::signal(self, request).await)
    }

    async fn wait(
        &self,
        _: &Context,
        request: api::ProcessRef,
    ) -> ttrpc::Result<api::WaitResponse> {
        let exit = answer(Service::wait(self, &request).await)?;
        let process::Exit { status, at_ns, oom_killed } = exit;
        Ok(api::WaitResponse { status, at_ns, oom_killed, ..Default::default() })
    }

    async fn resize(&self, _: &Context, request: api::ResizeRequest) -> ttrpc::Result<api::Empty> {
        let reference = request.process.clone().unwrap_or_default();
        let process = self.0.containers.process(&reference.container, &reference.exec);
        empty(process.and_then(|process| process.resize(request.width, request.height)))
    }

    async fn close_stdin(
        &self,
        _: &Context,
        request: api::ProcessRef,
    ) -> ttrpc::Result<api::Empty> {
        let process = self.0.containers.process(&request.container, &request.exec);
        empty(process.map(|process| process.close_stdin()))
    }

    async fn delete_exec(
        &self,
        _: &Context,
        request: api::ProcessRef,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.0.containers.get(&request.container);
        empty(container.and_then(|container| container.delete_exec(&request.exec)))
    }

    async fn update(&self, _: &Context, request: api::UpdateRequest) -> ttrpc::Result<api::Empty> {
        empty(Service::update(self, &request).await)
    }

    async fn stats(
        &self,
        _: &Context,
        request: api::ContainerRef,
    ) -> ttrpc::Result<api::StatsResponse> {
        let cgroup = answer(self.0.containers.get(&request.container))?.cgroup.clone();
        Ok(stats::read(&cgroup, Path::new("/sys/class/net")))
    }

    async fn pause(&self, _: &Context, request: api::ContainerRef) -> ttrpc::Result<api::Empty> {
        empty(self.freeze(&request.container, true).await)
    }

    async fn resume(&self, _: &Context, request: api::ContainerRef) -> ttrpc::Result<api::Empty> {
        empty(self.freeze(&request.container, false).await)
    }

    async fn delete_container(
        &self,
        _: &Context,
        request: api::ContainerRef,
    ) -> ttrpc::Result<api::Empty> {
        empty(self.delete(&request.container).await)
    }

    async fn online(
        &self,
        _: &Context,
        request: api::OnlineRequest,
    ) -> ttrpc::Result<api::OnlineResponse> {
        answer(blocking(move || online(request.vcpus)).await)
    }

    async fn set_clock(
        &self,
        _: &Context,
        request: api::SetClockRequest,
    ) -> ttrpc::Result<api::Empty> {
        empty(set_clock(request.clock_ns))
    }

    async fn shutdown(&self, _: &Context, _: api::Empty) -> ttrpc::Result<api::Empty> {
        empty(sandbox::shut_down())
    }
}
