//! CRI over the daemon's socket, one blocking call per method, each with a deadline.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_cri::v1 as api;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// How long any one call may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of the runtime service.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// A client of the daemon at `socket`; connects with the first call and again when needed.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        let client = RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20);
        Ok(Self { runtime, client })
    }

    fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await });
        let answer = answer.map_err(|_| anyhow!("no answer after {PATIENCE:?}"));
        let answer = answer.and_then(|answer| answer.map_err(|status| anyhow!(Refused(status))));
        Ok(answer.context(what.to_owned())?.into_inner())
    }

    /// RunPodSandbox; gives the Pod's id.
    pub fn run_pod(&self, config: &api::PodSandboxConfig, handler: &str) -> Result<String> {
        let request = api::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let mut client = self.client.clone();
        Ok(self.call("RunPodSandbox", client.run_pod_sandbox(request))?.pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub fn stop_pod(&self, id: &str) -> Result<()> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", self.client.clone().stop_pod_sandbox(request)).map(drop)
    }

    /// RemovePodSandbox.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("RemovePodSandbox", self.client.clone().remove_pod_sandbox(request)).map(drop)
    }

    /// PodSandboxStatus.
    pub fn pod_status(&self, id: &str) -> Result<api::PodSandboxStatus> {
        let request =
            api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.call("PodSandboxStatus", self.client.clone().pod_sandbox_status(request));
        answer?.status.context("PodSandboxStatus: an empty answer")
    }

    /// CreateContainer; gives the container's id.
    pub fn create(
        &self,
        pod: &str,
        pod_config: &api::PodSandboxConfig,
        config: &api::ContainerConfig,
    ) -> Result<String> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        let mut client = self.client.clone();
        Ok(self.call("CreateContainer", client.create_container(request))?.container_id)
    }

    /// StartContainer.
    pub fn start(&self, id: &str) -> Result<()> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        self.call("StartContainer", self.client.clone().start_container(request)).map(drop)
    }

    /// StopContainer with a grace period in seconds.
    pub fn stop(&self, id: &str, timeout: i64) -> Result<()> {
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.call("StopContainer", self.client.clone().stop_container(request)).map(drop)
    }

    /// RemoveContainer.
    pub fn remove(&self, id: &str) -> Result<()> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        self.call("RemoveContainer", self.client.clone().remove_container(request)).map(drop)
    }

    /// ContainerStatus.
    pub fn status(&self, id: &str) -> Result<api::ContainerStatus> {
        let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.call("ContainerStatus", self.client.clone().container_status(request));
        answer?.status.context("ContainerStatus: an empty answer")
    }

    /// ExecSync with a deadline of its own, told to the daemon in seconds.
    pub fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Result<api::ExecSyncResponse> {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = api::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        self.call("ExecSync", self.client.clone().exec_sync(Request::new(request)))
    }

    /// ContainerStats.
    pub fn stats(&self, id: &str) -> Result<api::ContainerStats> {
        let request = api::ContainerStatsRequest { container_id: id.to_owned() };
        let answer = self.call("ContainerStats", self.client.clone().container_stats(request));
        answer?.stats.context("ContainerStats: an empty answer")
    }

    /// UpdateContainerResources.
    pub fn update(&self, id: &str, linux: api::LinuxContainerResources) -> Result<()> {
        let request = api::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let mut client = self.client.clone();
        self.call("UpdateContainerResources", client.update_container_resources(request)).map(drop)
    }
}

/// What the daemon answered instead of doing it.
#[derive(Debug)]
pub struct Refused(pub Status);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.0.code(), self.0.message())
    }
}

impl std::error::Error for Refused {}
