//! The calls, one method each.

use std::collections::HashMap;
use std::time::Duration;

use k8s_cri::v1::{
    AttachRequest, Container, ContainerConfig, ContainerFilter, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    Image, ImageSpec, ImageStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxConfig, PodSandboxFilter, PodSandboxStatus, PodSandboxStatusRequest,
    PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tonic::Request;

use super::call::{CHANGE, PULL, READ, answer, deadline, retried};
use super::client::Cri;
use super::config::configured_handlers;
use super::error::CriError;

impl Cri {
    /// The image of that reference, if this node has it.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<Image>, CriError> {
        let image = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
        let status = ImageStatusRequest { image: Some(image), verbose: false };
        let call = |request| {
            let mut images = self.images.clone();
            async move { images.image_status(request).await }
        };
        Ok(retried(self.reporter(), "look for image", reference, status, READ, call).await?.image)
    }

    /// Pulls an image and returns its id. Errors have `reference` but nothing of the request, which has the credential.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        pull: PullImageRequest,
    ) -> Result<String, CriError> {
        let result = self.images.clone().pull_image(deadline(pull, PULL)).await;
        Ok(answer("pull image", reference, result)?.image_ref)
    }

    /// The runtime's handlers; empty if it does not report them.
    pub(crate) async fn handlers(&self) -> Result<Vec<String>, CriError> {
        let status = StatusRequest { verbose: true };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.status(request).await }
        };
        let status =
            retried(self.reporter(), "get from the runtime", "its handlers", status, READ, call)
                .await?;
        let mut names: Vec<String> = status
            .runtime_handlers
            .into_iter()
            .map(|it| it.name)
            .filter(|it| !it.is_empty())
            .collect();
        if let (true, Some(config)) = (names.is_empty(), status.info.get("config")) {
            names = configured_handlers(config);
        }
        names.sort();
        Ok(names)
    }

    /// The sandboxes with these labels.
    pub(crate) async fn sandboxes(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<PodSandbox>, CriError> {
        let filter = PodSandboxFilter { label_selector: labels, ..PodSandboxFilter::default() };
        let list = ListPodSandboxRequest { filter: Some(filter) };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.list_pod_sandbox(request).await }
        };
        Ok(retried(self.reporter(), "list", "the Pods of this node", list, READ, call).await?.items)
    }

    /// The containers of a sandbox.
    pub async fn containers(&self, sandbox: &str) -> Result<Vec<Container>, CriError> {
        let filter =
            ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..ContainerFilter::default() };
        let list = ListContainersRequest { filter: Some(filter) };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.list_containers(request).await }
        };
        Ok(retried(self.reporter(), "list the containers of Pod", sandbox, list, READ, call)
            .await?
            .containers)
    }

    /// Starts a sandbox and returns its id.
    pub(crate) async fn run_sandbox(
        &self,
        name: &str,
        config: PodSandboxConfig,
        handler: &str,
    ) -> Result<String, CriError> {
        let run =
            RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let result = self.runtime.clone().run_pod_sandbox(deadline(run, CHANGE)).await;
        Ok(answer("start the sandbox of Pod", name, result)?.pod_sandbox_id)
    }

    /// A sandbox's state.
    pub async fn sandbox_status(&self, sandbox: &str) -> Result<PodSandboxStatus, CriError> {
        let status = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.pod_sandbox_status(request).await }
        };
        let status = retried(self.reporter(), "get the state of Pod", sandbox, status, READ, call)
            .await?
            .status;
        status.ok_or_else(|| CriError::Answer { object: sandbox.to_owned(), part: "status" })
    }

    /// Stops a sandbox and everything that runs in it.
    pub(crate) async fn stop_sandbox(&self, sandbox: &str) -> Result<(), CriError> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.stop_pod_sandbox(request).await }
        };
        retried(self.reporter(), "stop Pod", sandbox, stop, CHANGE, call).await.map(drop)
    }

    /// Removes a sandbox and its containers.
    pub(crate) async fn remove_sandbox(&self, sandbox: &str) -> Result<(), CriError> {
        let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.remove_pod_sandbox(request).await }
        };
        retried(self.reporter(), "remove Pod", sandbox, remove, CHANGE, call).await.map(drop)
    }

    /// Creates a container and returns its id.
    pub(crate) async fn create_container(
        &self,
        name: &str,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let result = self.runtime.clone().create_container(deadline(create, CHANGE)).await;
        Ok(answer("create container", name, result)?.container_id)
    }

    /// Starts a container.
    pub(crate) async fn start_container(&self, name: &str, id: &str) -> Result<(), CriError> {
        let start = StartContainerRequest { container_id: id.to_owned() };
        let result = self.runtime.clone().start_container(deadline(start, CHANGE)).await;
        answer("start container", name, result).map(drop)
    }

    /// Stops a container: SIGTERM, then SIGKILL after the grace.
    pub(crate) async fn stop_container(&self, id: &str, grace: i64) -> Result<(), CriError> {
        let stop = StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let wait = CHANGE + Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.stop_container(request).await }
        };
        retried(self.reporter(), "stop container", id, stop, wait, call).await.map(drop)
    }

    /// A container's state.
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let status = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.container_status(request).await }
        };
        let status = retried(self.reporter(), "get the state of container", id, status, READ, call)
            .await?
            .status;
        status.ok_or_else(|| CriError::Answer { object: id.to_owned(), part: "status" })
    }

    /// The URL of a command's streams in a container; with a terminal there is no standard error.
    pub async fn exec_url(
        &self,
        id: &str,
        command: Vec<String>,
        stdin: bool,
        tty: bool,
    ) -> Result<String, CriError> {
        let container_id = id.to_owned();
        let exec =
            ExecRequest { container_id, cmd: command, tty, stdin, stdout: true, stderr: !tty };
        let result = self.runtime.clone().exec(deadline(exec, READ)).await;
        Ok(answer("prepare the command in container", id, result)?.url)
    }

    /// The URL of the streams of a container's own process.
    pub async fn attach_url(&self, id: &str, stdin: bool, tty: bool) -> Result<String, CriError> {
        let container_id = id.to_owned();
        let attach = AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
        let result = self.runtime.clone().attach(deadline(attach, READ)).await;
        Ok(answer("attach to container", id, result)?.url)
    }

    /// Runs a command in a container and waits for it; `timeout` in seconds, 0 for none.
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<ExecSyncResponse, CriError> {
        let exec = ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout };
        // The runtime enforces the timeout: a deadline here would lose the output and the reason.
        let result = self.runtime.clone().exec_sync(Request::new(exec)).await;
        answer("run the command in container", id, result)
    }
}
