//! The sandbox that this guest is: its Pod's containers and the configuration from the host.

use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent_api::agent::{ConfigureRequest, ConfigureResponse};
use agent_system::{configure, memory_block, power_off, since_boot};

use crate::cgroup;
use crate::containers::Containers;
use crate::error::{Doing, Result, internal, refused};
use crate::pod::Pod;
use crate::reaper::Reaper;

/// The sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) pod: Arc<Pod>,
    pub(crate) containers: Containers,
    /// Nanoseconds from the kernel's start to the agent's.
    started_ns: u64,
    /// `ConfigureRequest.stream_write_max`, from the first call on; 0 for no bound.
    stream_write_max: OnceLock<u32>,
}

impl Sandbox {
    pub(crate) fn new(started_ns: u64, reaper: Reaper) -> Self {
        Self {
            pod: Arc::new(Pod::new(reaper)),
            containers: Containers::default(),
            started_ns,
            stream_write_max: OnceLock::new(),
        }
    }

    /// Upper bound in bytes on one write to a stream of the host.
    pub(crate) fn stream_write_max(&self) -> usize {
        match self.stream_write_max.get() {
            None | Some(0) => usize::MAX,
            Some(max) => usize::try_from(*max).unwrap_or(usize::MAX),
        }
    }

    /// Fails until the host has called [`Sandbox::configure`].
    pub(crate) fn require_configured(&self) -> Result<()> {
        match self.stream_write_max.get() {
            Some(_) => Ok(()),
            None => Err(refused("the guest is not configured yet")),
        }
    }

    /// The host's first call. It is not repeated, not even after it has failed.
    pub(crate) async fn configure(&self, request: ConfigureRequest) -> Result<ConfigureResponse> {
        if request.protocol != agent_api::PROTOCOL {
            return Err(refused(format!(
                "the host speaks protocol {}, this agent {}",
                request.protocol,
                agent_api::PROTOCOL
            )));
        }
        if self.stream_write_max.set(request.stream_write_max).is_err() {
            return Err(refused("the guest is already configured"));
        }
        configure(request).await?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .doing(|| "reading the kernel's release".into())?;
        Ok(ConfigureResponse {
            protocol: agent_api::PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: kernel.trim().into(),
            agent_started_ns: self.started_ns,
            memory_block: memory_block(),
            configured_ns: since_boot(),
            ..ConfigureResponse::default()
        })
    }
}

/// Kills all containers and powers the VM off a moment later.
pub(crate) fn shut_down() -> Result<()> {
    let killed = cgroup::kill_all();
    tokio::spawn(async {
        // Time for the response to reach the host.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = tokio::task::spawn_blocking(power_off).await;
    });
    killed.map_err(|error| internal(format!("killing all containers: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_protocol_is_refused() {
        let sandbox = Sandbox::new(0, Reaper::default());
        assert!(sandbox.require_configured().is_err());
        let request = ConfigureRequest { protocol: 99, ..ConfigureRequest::default() };
        let error = sandbox.configure(request).await.unwrap_err().to_string();
        assert_eq!(error, "the host speaks protocol 99, this agent 1");
    }
}
