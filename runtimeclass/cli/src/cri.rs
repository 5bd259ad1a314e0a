//! The client of the node's container runtime: CRI v1 over its unix socket.

mod calls;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{RuntimeConfigRequest, StatusRequest, VersionRequest};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::cgroup::Driver;

/// How long a call may take that only reads.
const READ: Duration = Duration::from_secs(30);
/// How long a call may take that starts or stops something.
const CHANGE: Duration = Duration::from_secs(240);
/// How long a runtime may be away, as while it is restarted: Pods go on meanwhile.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is looked for.
const AWAY_LOOK: Duration = Duration::from_millis(200);
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
    #[error("{verb} {object}: {}", status.message().trim_end())]
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

    /// Whether nobody was there to answer: no connection, or a runtime that is only starting.
    fn is_away(&self) -> bool {
        let Self::Call { status, .. } = self else { return false };
        // The transport's own failures carry their cause; the runtime's answers have none.
        let broken = std::error::Error::source(status.as_ref()).is_some();
        let codes = [Code::Unknown, Code::Internal, Code::Cancelled];
        status.code() == Code::Unavailable || (broken && codes.contains(&status.code()))
    }
}

/// A connection to the runtime.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
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

/// Makes a call that may be made again, and waits for a runtime that is away.
async fn patient<M: Clone, T, F>(
    verb: &'static str,
    object: &str,
    message: M,
    after: Duration,
    call: impl Fn(Request<M>) -> F,
) -> Result<T, CriError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut since = None;
    loop {
        let result = answer(verb, object, call(deadline(message.clone(), after)).await);
        let away = result.as_ref().is_err_and(CriError::is_away);
        if away && since.is_none() {
            eprintln!("bulkhead: the container runtime is away; waiting for it");
        }
        let start = *since.get_or_insert_with(Instant::now);
        if !away || start.elapsed() > AWAY {
            return result;
        }
        tokio::time::sleep(AWAY_LOOK).await;
    }
}

impl Cri {
    /// Connects, and makes sure that CRI v1 is spoken there.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self, CriError> {
        let path = socket(endpoint)?;
        let channel = channel(&path).await.map_err(|source| CriError::Connect { path, source })?;
        let cri = Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            channel,
        };
        let version = VersionRequest { version: "v1".to_owned() };
        let result = cri.runtime.clone().version(deadline(version, READ)).await;
        answer("ask for the CRI version at", endpoint, result)?;
        Ok(cri)
    }

    /// The connection itself, for what is no part of CRI.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Who manages the cgroups of Pods with this handler.
    ///
    /// Runtimes answer this since containerd 2.0; before, the handler's configuration tells.
    pub(crate) async fn cgroup_driver(&self, handler: &str) -> Result<Driver, CriError> {
        let request = deadline(RuntimeConfigRequest {}, READ);
        let result = self.runtime.clone().runtime_config(request).await;
        let systemd = match answer("ask the runtime for", "its cgroup driver", result) {
            Ok(config) => {
                let systemd = i32::from(k8s_cri::v1::CgroupDriver::Systemd);
                config.linux.is_some_and(|linux| linux.cgroup_driver == systemd)
            }
            Err(error) if error.code() == Some(Code::Unimplemented) => {
                let request = deadline(StatusRequest { verbose: true }, READ);
                let result = self.runtime.clone().status(request).await;
                let info = answer("ask the runtime for", "its configuration", result)?.info;
                info.get("config").is_some_and(|config| configured_systemd(config, handler))
            }
            Err(error) => return Err(error),
        };
        Ok(if systemd { Driver::Systemd } else { Driver::Cgroupfs })
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

/// The names of the handlers in containerd's configuration as JSON.
fn configured_handlers(config: &str) -> Vec<String> {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let runtimes = config["containerd"]["runtimes"].as_object();
    runtimes.map(|all| all.keys().cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handlers_of_old_runtimes() {
        let config = r#"{"containerd":{"runtimes":{"runc":{},"gvisor":{}}}}"#;
        assert_eq!(configured_handlers(config), ["gvisor", "runc"]);
        assert!(configured_handlers("").is_empty());
    }

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
