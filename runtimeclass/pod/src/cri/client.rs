//! The connection to the runtime's unix socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{RuntimeConfigRequest, StatusRequest, VersionRequest};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use super::call::{READ, answer, deadline};
use super::config::configured_systemd;
use super::error::CriError;
use crate::cgroup::CgroupDriver;
use crate::reporter::Reporter;

/// The largest answer: runtimes cut the output of ExecSync at 16 MiB for each stream.
const MESSAGE_LIMIT: usize = 40 * 1024 * 1024;

/// A connection to the runtime.
#[derive(Clone, Debug)]
pub struct Cri {
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    channel: Channel,
    reporter: Arc<dyn Reporter>,
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

impl Cri {
    /// Connects to the socket at `endpoint` (`unix:///path` or `/path`) and checks that it serves CRI v1.
    ///
    /// # Errors
    ///
    /// [`CriError`] for another kind of endpoint, and when nothing serves CRI v1 there.
    pub async fn connect(endpoint: &str, reporter: Arc<dyn Reporter>) -> Result<Self, CriError> {
        let path = socket(endpoint)?;
        let channel = channel(&path).await.map_err(|source| CriError::Connect { path, source })?;
        let cri = Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            channel,
            reporter,
        };
        let version = VersionRequest { version: "v1".to_owned() };
        let result = cri.runtime.clone().version(deadline(version, READ)).await;
        answer("ask for the CRI version at", endpoint, result)?;
        Ok(cri)
    }

    /// Where notes about the runtime go.
    pub(crate) fn reporter(&self) -> &dyn Reporter {
        self.reporter.as_ref()
    }

    /// The connection itself, for services other than CRI.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The cgroup driver of Pods with this handler.
    ///
    /// containerd 2.0 and later report it; before, it is read from the handler's configuration.
    pub(crate) async fn cgroup_driver(&self, handler: &str) -> Result<CgroupDriver, CriError> {
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
        Ok(if systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
