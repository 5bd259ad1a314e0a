//! The client of the node's container runtime: CRI v1 over its unix socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, AuthConfig, Container, ContainerConfig, ContainerFilter, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    Image, ImageSpec, ImageStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxConfig, PodSandboxFilter, PodSandboxStatus, PodSandboxStatusRequest,
    PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, RuntimeConfigRequest,
    StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
    VersionRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

/// How long a call may take that only reads.
const READ: Duration = Duration::from_secs(30);
/// How long a call may take that starts or stops something.
const CHANGE: Duration = Duration::from_secs(240);
/// How long a pull may take.
const PULL: Duration = Duration::from_secs(1800);
/// The largest answer: runtimes cut the output of ExecSync at 16 MiB for each stream.
const MESSAGE_LIMIT: usize = 40 * 1024 * 1024;

/// Why the runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CriError {
    /// The endpoint is not a unix socket's.
    #[error("endpoint {0:?} is not supported: give the runtime's socket as unix:///path or /path")]
    Endpoint(String),
    /// Nobody answers on the socket.
    #[error(
        "cannot reach a container runtime at {path}; is it running? (--runtime-endpoint gives another socket)"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// A call failed.
    #[error("{verb} {object}: {}", status.message())]
    Call {
        /// What was asked, as a person says it: `start container`.
        verb: &'static str,
        /// Of what.
        object: String,
        /// The runtime's answer.
        status: Box<Status>,
    },
    /// An answer lacks a part that CRI requires.
    #[error("the runtime's answer about {object} has no {part}")]
    Answer {
        /// Of what.
        object: String,
        /// What is missing.
        part: &'static str,
    },
}

impl CriError {
    /// The gRPC code of a failed call.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            Self::Endpoint(_) | Self::Connect { .. } | Self::Answer { .. } => None,
        }
    }
}

/// A connection to the runtime.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// The socket's path in an endpoint such as `unix:///run/containerd/containerd.sock`.
fn socket(endpoint: &str) -> Result<PathBuf, CriError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(CriError::Endpoint(endpoint.to_owned()))
    }
}

async fn channel(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI only fills the HTTP/2 authority; the connector decides where the bytes go.
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

fn deadline<T>(message: T, after: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(after);
    request
}

fn answer<T>(
    verb: &'static str,
    object: &str,
    result: Result<Response<T>, Status>,
) -> Result<T, CriError> {
    result.map(Response::into_inner).map_err(|status| CriError::Call {
        verb,
        object: object.to_owned(),
        status: Box::new(status),
    })
}

impl Cri {
    /// Connects, and makes sure that CRI v1 is spoken there.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self, CriError> {
        let path = socket(endpoint)?;
        let channel = channel(&path).await.map_err(|source| CriError::Connect { path, source })?;
        let cri = Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        };
        let version = VersionRequest { version: "v1".to_owned() };
        let result = cri.runtime.clone().version(deadline(version, READ)).await;
        answer("ask for the CRI version at", endpoint, result)?;
        Ok(cri)
    }

    /// Whether cgroups of Pods with this handler are named as systemd names them.
    ///
    /// Runtimes answer this since containerd 2.0; before, the handler's configuration tells.
    pub(crate) async fn systemd_cgroups(&self, handler: &str) -> Result<bool, CriError> {
        let request = deadline(RuntimeConfigRequest {}, READ);
        let result = self.runtime.clone().runtime_config(request).await;
        match answer("ask the runtime for", "its cgroup driver", result) {
            Ok(config) => {
                let systemd = i32::from(k8s_cri::v1::CgroupDriver::Systemd);
                Ok(config.linux.is_some_and(|linux| linux.cgroup_driver == systemd))
            }
            Err(error) if error.code() == Some(Code::Unimplemented) => {
                let request = deadline(StatusRequest { verbose: true }, READ);
                let result = self.runtime.clone().status(request).await;
                let info = answer("ask the runtime for", "its configuration", result)?.info;
                Ok(info.get("config").is_some_and(|config| configured_systemd(config, handler)))
            }
            Err(error) => Err(error),
        }
    }

    /// The image of that reference on this node.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<Image>, CriError> {
        let image = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
        let request = deadline(ImageStatusRequest { image: Some(image), verbose: false }, READ);
        let result = self.images.clone().image_status(request).await;
        Ok(answer("look for image", reference, result)?.image)
    }

    /// Pulls an image.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        auth: Option<AuthConfig>,
        sandbox: &PodSandboxConfig,
    ) -> Result<(), CriError> {
        let image = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
        let pull =
            PullImageRequest { image: Some(image), auth, sandbox_config: Some(sandbox.clone()) };
        let result = self.images.clone().pull_image(deadline(pull, PULL)).await;
        answer("pull image", reference, result).map(drop)
    }

    /// The sandboxes with these labels.
    pub(crate) async fn sandboxes(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<PodSandbox>, CriError> {
        let filter = PodSandboxFilter { label_selector: labels, ..PodSandboxFilter::default() };
        let request = deadline(ListPodSandboxRequest { filter: Some(filter) }, READ);
        let result = self.runtime.clone().list_pod_sandbox(request).await;
        Ok(answer("list", "the Pods of this node", result)?.items)
    }

    /// The containers of a sandbox.
    pub(crate) async fn containers(&self, sandbox: &str) -> Result<Vec<Container>, CriError> {
        let filter =
            ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..ContainerFilter::default() };
        let request = deadline(ListContainersRequest { filter: Some(filter) }, READ);
        let result = self.runtime.clone().list_containers(request).await;
        Ok(answer("list the containers of Pod", sandbox, result)?.containers)
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
        let result = self.runtime.clone().pod_sandbox_status(deadline(status, READ)).await;
        let status = answer("ask for the state of Pod", sandbox, result)?.status;
        status.ok_or_else(|| CriError::Answer { object: sandbox.to_owned(), part: "status" })
    }

    /// Stops a sandbox and whatever runs in it.
    pub(crate) async fn stop_sandbox(&self, sandbox: &str) -> Result<(), CriError> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let result = self.runtime.clone().stop_pod_sandbox(deadline(stop, CHANGE)).await;
        answer("stop Pod", sandbox, result).map(drop)
    }

    /// Removes a sandbox and its containers.
    pub(crate) async fn remove_sandbox(&self, sandbox: &str) -> Result<(), CriError> {
        let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let result = self.runtime.clone().remove_pod_sandbox(deadline(remove, CHANGE)).await;
        answer("remove Pod", sandbox, result).map(drop)
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
        let result = self.runtime.clone().stop_container(deadline(stop, wait)).await;
        answer("stop container", id, result).map(drop)
    }

    /// A container's state.
    pub(crate) async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let status = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let result = self.runtime.clone().container_status(deadline(status, READ)).await;
        let status = answer("ask for the state of container", id, result)?.status;
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

/// `SystemdCgroup` of a handler (the default one if it has no name) in containerd's configuration as JSON.
fn configured_systemd(config: &str, handler: &str) -> bool {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let containerd = &config["containerd"];
    let default = containerd["defaultRuntimeName"].as_str().unwrap_or_default();
    let handler = if handler.is_empty() { default } else { handler };
    containerd["runtimes"][handler]["options"]["SystemdCgroup"].as_bool().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_driver_of_old_runtimes() {
        let config = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{
            "runc":{"options":{"SystemdCgroup":true}},"gvisor":{"options":{"TypeUrl":"x"}},"bare":{}}}}"#;
        for (handler, wanted) in
            [("", true), ("runc", true), ("gvisor", false), ("bare", false), ("no", false)]
        {
            assert_eq!(configured_systemd(config, handler), wanted, "{handler}");
        }
        assert!(!configured_systemd("", ""));
    }

    #[test]
    fn endpoints() {
        for endpoint in ["unix:///run/c.sock", "/run/c.sock"] {
            assert_eq!(socket(endpoint).unwrap(), Path::new("/run/c.sock"));
        }
        for endpoint in ["tcp://127.0.0.1:1", "run/c.sock", "unix://c.sock", ""] {
            assert!(matches!(socket(endpoint), Err(CriError::Endpoint(it)) if it == endpoint));
        }
    }
}
