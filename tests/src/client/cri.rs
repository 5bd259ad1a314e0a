//! CRI over the daemon's socket, one blocking call per method, each with a deadline.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_cri::v1 as api;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::bed::process::patience;

/// How long any one call may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of the runtime service. Each call makes a new connection, so that the client survives a
/// restart of the daemon.
#[derive(Debug)]
pub(crate) struct Cri {
    runtime: Runtime,
    endpoint: Endpoint,
}

type Client = RuntimeServiceClient<Channel>;

impl Cri {
    /// A client of the daemon at `socket`.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(Self { runtime, endpoint })
    }

    fn call<T>(
        &self,
        what: &str,
        call: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let exchange = async {
            let channel = self.endpoint.connect().await?;
            let client = RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20);
            call(client).await.map_err(|status| anyhow!(Refused(status)))
        };
        let patience = patience(PATIENCE);
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(patience, exchange).await });
        let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer after {patience:?}")));
        Ok(answer.context(what.to_owned())?.into_inner())
    }

    /// RunPodSandbox; returns the Pod's id.
    pub(crate) fn run_pod(&self, config: &api::PodSandboxConfig, handler: &str) -> Result<String> {
        let request = api::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        Ok(self
            .call("RunPodSandbox", async |mut c| c.run_pod_sandbox(request).await)?
            .pod_sandbox_id)
    }

    /// ListPodSandbox: the ids of all Pods.
    pub(crate) fn pods(&self) -> Result<Vec<String>> {
        let request = api::ListPodSandboxRequest::default();
        let list = self.call("ListPodSandbox", async |mut c| c.list_pod_sandbox(request).await)?;
        Ok(list.items.into_iter().map(|pod| pod.id).collect())
    }

    /// StopPodSandbox.
    pub(crate) fn stop_pod(&self, id: &str) -> Result<()> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", async |mut c| c.stop_pod_sandbox(request).await).map(drop)
    }

    /// RemovePodSandbox.
    pub(crate) fn remove_pod(&self, id: &str) -> Result<()> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("RemovePodSandbox", async |mut c| c.remove_pod_sandbox(request).await).map(drop)
    }

    /// PodSandboxStatus.
    pub(crate) fn pod_status(&self, id: &str) -> Result<api::PodSandboxStatus> {
        let request =
            api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer =
            self.call("PodSandboxStatus", async |mut c| c.pod_sandbox_status(request).await);
        answer?.status.context("PodSandboxStatus: an empty answer")
    }

    /// PodSandboxStatus, verbose: with the additional information, for which the daemon asks the shim.
    pub(crate) fn pod_info(&self, id: &str) -> Result<HashMap<String, String>> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer =
            self.call("PodSandboxStatus", async |mut c| c.pod_sandbox_status(request).await);
        Ok(answer?.info)
    }

    /// CreateContainer; returns the container's id.
    pub(crate) fn create(
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
        Ok(self
            .call("CreateContainer", async |mut c| c.create_container(request).await)?
            .container_id)
    }

    /// StartContainer.
    pub(crate) fn start(&self, id: &str) -> Result<()> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        self.call("StartContainer", async |mut c| c.start_container(request).await).map(drop)
    }

    /// StopContainer with a grace period in seconds.
    pub(crate) fn stop(&self, id: &str, timeout: i64) -> Result<()> {
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.call("StopContainer", async |mut c| c.stop_container(request).await).map(drop)
    }

    /// RemoveContainer.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        self.call("RemoveContainer", async |mut c| c.remove_container(request).await).map(drop)
    }

    /// ContainerStatus.
    pub(crate) fn status(&self, id: &str) -> Result<api::ContainerStatus> {
        let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.call("ContainerStatus", async |mut c| c.container_status(request).await);
        answer?.status.context("ContainerStatus: an empty answer")
    }

    /// ExecSync with a timeout in seconds, which the daemon gets too.
    pub(crate) fn exec(
        &self,
        id: &str,
        cmd: &[&str],
        timeout: u64,
    ) -> Result<api::ExecSyncResponse> {
        let timeout = i64::try_from(patience(Duration::from_secs(timeout)).as_secs())?;
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = api::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        self.call("ExecSync", async |mut c| c.exec_sync(request).await)
    }

    /// PortForward; returns the address of the stream.
    pub(crate) fn port_forward(&self, pod: &str, port: u16) -> Result<String> {
        let request =
            api::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![port.into()] };
        Ok(self.call("PortForward", async |mut c| c.port_forward(request).await)?.url)
    }

    /// ContainerStats.
    pub(crate) fn stats(&self, id: &str) -> Result<api::ContainerStats> {
        let request = api::ContainerStatsRequest { container_id: id.to_owned() };
        let answer = self.call("ContainerStats", async |mut c| c.container_stats(request).await);
        answer?.stats.context("ContainerStats: an empty answer")
    }

    /// UpdateContainerResources.
    pub(crate) fn update(&self, id: &str, linux: api::LinuxContainerResources) -> Result<()> {
        let request = api::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        self.call("UpdateContainerResources", async |mut c| {
            c.update_container_resources(request).await
        })
        .map(drop)
    }
}

/// The error that the daemon answered.
#[derive(Debug)]
pub(crate) struct Refused(pub Status);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.0.code(), self.0.message())
    }
}

impl std::error::Error for Refused {}
