//! A created container's first process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use runsc::{Network, Runsc, RunscId};
use sandbox_core::stdio::{ProcessFds, Streams};
use sandbox_core::{Early, Error, Killer, NetworkNamespace, Prepared, Result, Running};
use sandbox_netns::Dial;

use crate::error::GvisorError;
use crate::forward::{Inside, Outside};
use crate::netns::{self, SavedNetwork};
use crate::pod::Pod;
use crate::process::{Part, StartedProcess};
use crate::record::Record;
use crate::runtime::Runtime;

/// How the container came into its sandbox.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The sandbox was launched with it, and moves into the network namespace when it starts.
    Launched(NetworkNamespace),
    /// It was added. Its streams go to `runsc start`, unless there is a terminal.
    Joined(Option<ProcessFds>),
}

/// A first process that was not started.
#[derive(Debug)]
pub(crate) struct PreparedInit {
    pub(crate) id: RunscId,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) streams: Arc<Streams>,
    /// A checkpoint to restore from.
    pub(crate) image: Option<PathBuf>,
    /// The container has no process namespace of its own.
    pub(crate) shares_pids: bool,
    pub(crate) origin: Origin,
}

impl PreparedInit {
    async fn run(&mut self, early: Early) -> Result<Part, GvisorError> {
        self.pod.check_runs()?;
        if let Some(size) = early.size {
            self.streams.resize(size.width, size.height)?;
        }
        if early.stdin_closed {
            // The process reads what is in the fifo first: its reading end is open already.
            self.streams.close_stdin();
        }
        match &mut self.origin {
            Origin::Joined(stdio) => {
                let stdio = stdio.take();
                self.start(stdio, false).await?;
                Ok(Part::Init { shares_pids: self.shares_pids })
            }
            Origin::Launched(network) => {
                let network = network.clone();
                self.start_sandbox(&network).await?;
                Ok(Part::Root)
            }
        }
    }

    async fn start(&self, stdio: Option<ProcessFds>, mask: bool) -> Result<(), GvisorError> {
        let image = self.image.as_deref();
        Ok(self.runsc().start(&self.id, &self.bundle, image, stdio, mask).await?)
    }

    /// Starts the container that the sandbox was launched with, which takes the network over.
    async fn start_sandbox(&self, network: &NetworkNamespace) -> Result<(), GvisorError> {
        if self.runsc().network() != Network::Sandbox {
            return self.start(None, false).await;
        }
        let mask = self.runsc().mistakes_namespaces();
        let path = match network {
            NetworkNamespace::Path(path) => path,
            NetworkNamespace::New => {
                // The sandbox is in it since its creation.
                let made = format!("/proc/{}/ns/net", self.pod.process.pid);
                netns::loopback_up(made.into()).await?;
                return self.start(None, mask).await;
            }
            NetworkNamespace::Host => return self.start(None, mask).await,
        };
        let dial = self.save_network(path).await?;
        self.start(None, mask).await?;
        self.pod.forward_ports(path, dial).await;
        Ok(())
    }

    /// Keeps what runsc takes off the Pod's interfaces. Returns how ports of the sandbox are
    /// connected to.
    async fn save_network(&self, path: &Path) -> Result<Arc<dyn Dial>, GvisorError> {
        let saved = netns::save(path.to_owned()).await?;
        if let Some(mut record) = Record::load(&self.bundle)? {
            record.network = Some(saved.clone());
            record.store(&self.bundle)?;
        }
        let dial = self.dial(&saved);
        self.pod.keep_network(saved);
        Ok(dial)
    }

    fn dial(&self, saved: &SavedNetwork) -> Arc<dyn Dial> {
        if self.runsc().panics_on_port_forward() {
            return Arc::new(Outside(saved.addresses()));
        }
        Arc::new(Inside { control: self.pod.control.clone(), sandbox: self.pod.id.clone() })
    }

    /// Restores what a start that failed half-way has taken: runsc may have done so after the
    /// sandbox exited.
    async fn restore_network(&self) {
        let restored = match Record::load(&self.bundle) {
            Ok(Some(Record { network: Some(saved), .. })) => {
                netns::restore(saved).await.map_err(GvisorError::from)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = restored {
            tracing::warn!(sandbox = %self.id, "the Pod's addresses: {}", Error::from(error));
        }
    }

    fn runsc(&self) -> &Runsc {
        &self.runtime.runsc
    }

    /// Kills the sandbox if it was launched with this container, and lets the readers of the
    /// outputs see end-of-file.
    async fn release(&self) {
        if matches!(self.origin, Origin::Launched(_)) {
            if let Err(error) = self.pod.kill(self.runsc().delete_deadline()).await {
                let error = Error::from(error);
                tracing::warn!(sandbox = %self.id, "killing a sandbox that does not start: {error}");
            }
            self.restore_network().await;
        }
        self.streams.finish().await;
    }
}

#[async_trait]
impl Prepared for PreparedInit {
    async fn start(mut self: Box<Self>, early: Early) -> Result<Arc<dyn Running>> {
        match self.run(early).await {
            Ok(part) => {
                let Self { id, pod, streams, .. } = *self;
                Ok(StartedProcess::follow(pod, id, part, streams))
            }
            Err(error) => {
                // A sandbox is of no use without its first container.
                self.release().await;
                Err(error.into())
            }
        }
    }

    async fn abandon(self: Box<Self>) {
        self.release().await;
    }

    fn killer(&self) -> Option<Killer> {
        match self.origin {
            Origin::Launched(_) => {
                let process = self.pod.process;
                Some(Arc::new(move || {
                    process.kill();
                }))
            }
            Origin::Joined(_) => None,
        }
    }
}
