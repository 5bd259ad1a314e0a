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

use super::{CHANGE, Cri, CriError, PULL, READ, answer, configured_handlers, deadline, patient};

impl Cri {
    /// The image of that reference on this node.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<Image>, CriError> {
        let image = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
        let status = ImageStatusRequest { image: Some(image), verbose: false };
        let call = |request| {
            let mut images = self.images.clone();
            async move { images.image_status(request).await }
        };
        Ok(patient("look for image", reference, status, READ, call).await?.image)
    }

    /// Pulls an image; its id. A message about `reference` never holds the request, which has the credential.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        pull: PullImageRequest,
    ) -> Result<String, CriError> {
        let result = self.images.clone().pull_image(deadline(pull, PULL)).await;
        Ok(answer("pull image", reference, result)?.image_ref)
    }

    /// The runtime's handlers; none if it does not say.
    pub(crate) async fn handlers(&self) -> Result<Vec<String>, CriError> {
        let status = StatusRequest { verbose: true };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.status(request).await }
        };
        let status = patient("ask the runtime for", "its handlers", status, READ, call).await?;
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
        Ok(patient("list", "the Pods of this node", list, READ, call).await?.items)
    }

    /// The containers of a sandbox.
    pub(crate) async fn containers(&self, sandbox: &str) -> Result<Vec<Container>, CriError> {
        let filter =
            ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..ContainerFilter::default() };
        let list = ListContainersRequest { filter: Some(filter) };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.list_containers(request).await }
        };
        Ok(patient("list the containers of Pod", sandbox, list, READ, call).await?.containers)
    }

    /// Starts a sandbox; its id comes back.
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
    pub(crate) async fn sandbox_status(&self, sandbox: &str) -> Result<PodSandboxStatus, CriError> {
        let status = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.pod_sandbox_status(request).await }
        };
        let status = patient("ask for the state of Pod", sandbox, status, READ, call).await?.status;
        status.ok_or_else(|| CriError::Answer { object: sandbox.to_owned(), part: "status" })
    }

    /// Stops a sandbox and whatever runs in it.
    pub(crate) async fn stop_sandbox(&self, sandbox: &str) -> Result<(), CriError> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.stop_pod_sandbox(request).await }
        };
        patient("stop Pod", sandbox, stop, CHANGE, call).await.map(drop)
    }

    /// Removes a sandbox and its containers.
    pub(crate) async fn remove_sandbox(&self, sandbox: &str) -> Result<(), CriError> {
        let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.remove_pod_sandbox(request).await }
        };
        patient("remove Pod", sandbox, remove, CHANGE, call).await.map(drop)
    }

    /// Creates a container; its id comes back.
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
        patient("stop container", id, stop, wait, call).await.map(drop)
    }

    /// A container's state.
    pub(crate) async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let status = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let call = |request| {
            let mut runtime = self.runtime.clone();
            async move { runtime.container_status(request).await }
        };
        let status =
            patient("ask for the state of container", id, status, READ, call).await?.status;
        status.ok_or_else(|| CriError::Answer { object: id.to_owned(), part: "status" })
    }

    /// Where the streams of a command in a container can be had; with a terminal there is no standard error.
    pub(crate) async fn exec_url(
        &self,
        id: &str,
        command: Vec<String>,
        stdin: bool,
        tty: bool,
    ) -> Result<String, CriError> {
        let (container_id, cmd) = (id.to_owned(), command);
        let exec = ExecRequest { container_id, cmd, tty, stdin, stdout: true, stderr: !tty };
        let result = self.runtime.clone().exec(deadline(exec, READ)).await;
        Ok(answer("prepare the command in container", id, result)?.url)
    }

    /// Where the streams of a container's own process can be had.
    pub(crate) async fn attach_url(
        &self,
        id: &str,
        stdin: bool,
        tty: bool,
    ) -> Result<String, CriError> {
        let container_id = id.to_owned();
        let attach = AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
        let result = self.runtime.clone().attach(deadline(attach, READ)).await;
        Ok(answer("attach to container", id, result)?.url)
    }

    /// Runs a command in a container and waits for it; `timeout` in seconds, 0 for none.
    pub(crate) async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<ExecSyncResponse, CriError> {
        let exec = ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout };
        // The runtime keeps the time: a deadline here would lose the output and the reason.
        let result = self.runtime.clone().exec_sync(Request::new(exec)).await;
        answer("run the command in container", id, result)
    }
}
