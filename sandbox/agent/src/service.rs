//! The calls of the host: each is checked, handed on and answered here.

use std::path::Path;
use std::sync::Arc;

use agent_api::agent as api;
use agent_api::agent_ttrpc::Agent;
use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext as Context;

use crate::container::{Container, blocking};
use crate::containers::check_id;
use crate::error::{Error, Kind, Result, invalid, missing, status};
use crate::guest::{self, Guest};
use crate::{clock, limits, process, stats};

/// Serves the host's calls.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Guest>);

impl Service {
    async fn create(&self, request: api::CreateContainerRequest) -> Result<u32> {
        let guest = &self.0;
        guest.must_be_configured()?;
        let id = request.container.clone();
        guest.containers.reserve(&id)?;
        // The request may be given up by the host; its container is settled all the same.
        let guest = guest.clone();
        let making = tokio::spawn(async move {
            let made = Container::create(&guest, request).await.map(Arc::new);
            let settled = made.as_ref().ok().cloned();
            guest.containers.settle(&id, settled);
            made
        });
        let made = making.await.map_err(|error| crate::error::internal(error.to_string()))??;
        made.init.pid().ok_or_else(|| missing("the process ended before it was started"))
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
        let guest = self.0.clone();
        let starting =
            tokio::spawn(async move { container.start_exec(&guest, &reference.exec).await });
        starting.await.map_err(|error| crate::error::internal(error.to_string()))?
    }

    async fn signal(&self, request: api::SignalRequest) -> Result<()> {
        let signal = process::signal(request.signal)?;
        let reference = request.process.as_ref().ok_or_else(|| invalid("process is missing"))?;
        let container = self.0.containers.get(&reference.container)?;
        if !request.all {
            return container.process(&reference.exec)?.signal(&self.0.reaper, signal);
        }
        let group = container.cgroup.clone();
        match blocking(move || group.signal(signal)).await? {
            true => Ok(()),
            false => Err(missing(format!("container {:?} has no process", reference.container))),
        }
    }

    async fn wait(&self, reference: &api::ProcessRef) -> Result<process::Exit> {
        self.0.containers.process(&reference.container, &reference.exec)?.wait().await
    }

    async fn update(&self, request: &api::UpdateRequest) -> Result<()> {
        let writes = limits::writes(&limits::parse(&request.resources)?)?;
        let group = self.0.containers.get(&request.container)?.cgroup.clone();
        blocking(move || group.write(&writes)).await
    }

    async fn freeze(&self, container: &str, frozen: bool) -> Result<()> {
        let container = self.0.containers.get(container)?;
        if !container.init.is_running() {
            return Err(crate::error::refused("the container is not running"));
        }
        let group = container.cgroup.clone();
        blocking(move || group.freeze(frozen)).await
    }

    async fn delete(&self, id: &str) -> Result<()> {
        let container = match self.0.containers.get(id) {
            Ok(container) => container,
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        container.delete().await?;
        self.0.containers.settle(id, None);
        Ok(())
    }
}

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
        let group = answer(self.0.containers.get(&request.container))?.cgroup.clone();
        Ok(stats::read(&group, Path::new("/sys/class/net")))
    }

    async fn pause(&self, _: &Context, request: api::ContainerRef) -> ttrpc::Result<api::Empty> {
        empty(self.freeze(&request.container, true).await)
    }

    async fn resume(&self, _: &Context, request: api::ContainerRef) -> ttrpc::Result<api::Empty> {
        empty(self.freeze(&request.container, false).await)
    }

    async fn pids(
        &self,
        _: &Context,
        request: api::ContainerRef,
    ) -> ttrpc::Result<api::PidsResponse> {
        let container = answer(self.0.containers.get(&request.container))?;
        let pids = answer(container.pids())?.into_iter();
        let pids = pids.map(|(pid, exec)| api::Pid { pid, exec, ..Default::default() }).collect();
        Ok(api::PidsResponse { pids, ..Default::default() })
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
        answer(blocking(move || guest::online(request.vcpus)).await)
    }

    async fn set_clock(
        &self,
        _: &Context,
        request: api::SetClockRequest,
    ) -> ttrpc::Result<api::Empty> {
        empty(clock::set(request.clock_ns))
    }

    async fn shutdown(&self, _: &Context, _: api::Empty) -> ttrpc::Result<api::Empty> {
        empty(guest::shut_down())
    }
}
