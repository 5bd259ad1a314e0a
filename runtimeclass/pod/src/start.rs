//! Starting one Pod.

mod error;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1::{Mount, PodSandboxConfig};
use kube_manifest::{Container, Manifest, Pod, PullPolicy};

use crate::cgroup::{self, CgroupDriver};
use crate::convert::{self, ContainerFacts, ImageFacts, Placement, Source};
use crate::cri::Cri;
use crate::directory::{DirectoryError, PodDirectory, Record, log_path};
use crate::images;
use crate::logs::{Follower, Output, Printer};
use crate::node::{self, NodeFacts};
use crate::node_error::NodeError;
use crate::remove;
use crate::uncancelled::Uncancelled;
use crate::volumes::{self, Prepared};
use crate::wait::{self, Exited, StartedContainer};
pub use error::StartError;

/// Starts Pods; the same for every Pod of a run.
#[derive(Debug)]
pub struct Starter<'a> {
    cri: &'a Cri,
    manifest: &'a Manifest,
    node: &'a NodeFacts,
    state: &'a Path,
    /// Overrides the containers' pull policies.
    pub pull: Option<PullPolicy>,
    /// How cgroups are named; `None` asks the runtime.
    pub cgroup_driver: Option<CgroupDriver>,
    /// Where the containers' logs are printed; `None` does not follow them.
    pub output: Option<Arc<Output>>,
    calls: Uncancelled,
}

/// How far a Pod was started.
#[derive(Debug)]
pub enum Outcome {
    /// Its containers were started.
    Running(Vec<StartedContainer>),
    /// An init container failed, so its containers were not started.
    InitFailed(Exited),
}

/// A Pod whose sandbox runs and whose containers were not started yet.
struct Ready<'a> {
    source: Source<'a>,
    directory: &'a PodDirectory,
    sandbox: String,
    sandbox_config: PodSandboxConfig,
    volumes: BTreeMap<String, Prepared>,
    images: BTreeMap<String, ImageFacts>,
    ips: Vec<String>,
}

impl<'a> Starter<'a> {
    /// Starts Pods of `manifest` on `node`, with their directories below `state`.
    pub fn new(cri: &'a Cri, manifest: &'a Manifest, node: &'a NodeFacts, state: &'a Path) -> Self {
        Self {
            cri,
            manifest,
            node,
            state,
            pull: None,
            cgroup_driver: None,
            output: None,
            calls: Uncancelled::default(),
        }
    }

    /// Waits for calls to the runtime that were not complete when their caller was cancelled.
    pub async fn idle(&self) {
        self.calls.idle().await;
    }

    /// Reserves the Pod's name on this node.
    ///
    /// # Errors
    ///
    /// [`StartError::Directory`] when a Pod of that name exists.
    pub async fn reserve(&self, pod: &Pod) -> Result<(Placement, PodDirectory), StartError> {
        let namespace = pod.meta.namespace.clone();
        let name = pod.meta.name.clone();
        if !remove::sandboxes(self.cri, Some((&namespace, &name))).await?.is_empty() {
            return Err(DirectoryError::Exists { pod: pod.meta.to_string() }.into());
        }
        let driver = match self.cgroup_driver {
            Some(driver) => driver,
            None => self.cri.cgroup_driver(&self.manifest.handler(pod)).await?,
        };
        let uid = node::new_uid()?;
        let directory =
            PodDirectory::create(self.state, &Record { namespace, name, uid: uid.clone() })?;
        let cgroup_parent = cgroup::parent(&uid, driver);
        Ok((Placement { uid, directory: directory.path().to_owned(), cgroup_parent }, directory))
    }

    /// Starts a reserved Pod and returns when its containers were started. After an error the caller removes the Pod.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(
        &self,
        pod: &Pod,
        placement: &Placement,
        directory: &PodDirectory,
    ) -> Result<Outcome, StartError> {
        let source = Source { manifest: self.manifest, pod, node: self.node, placement };
        let sandbox_config = convert::sandbox_config(source);
        let images =
            images::ensure(self.cri, self.manifest, pod, self.pull, &sandbox_config).await?;
        let volumes = volumes::prepare(self.manifest, pod, &directory.volumes())?;
        if cgroup::is_slice(&placement.cgroup_parent) {
            self.cri
                .reporter()
                .line("note: systemd manages cgroups, so the Pod's own cgroup gets no limits");
        } else {
            cgroup::create(&placement.uid, &convert::pod_limits(self.manifest, pod))?;
        }
        let sandbox = self.run_sandbox(pod, &sandbox_config).await?;
        let status = self.cri.sandbox_status(&sandbox).await?;
        let network = status.network.unwrap_or_default();
        let mut ips = vec![network.ip];
        ips.extend(network.additional_ips.into_iter().map(|more| more.ip));
        ips.retain(|ip| !ip.is_empty());
        let hosts = convert::hosts_file(source, &ips, &node::hosts()?);
        write_file(&directory.file("hosts"), hosts.as_bytes(), 0o644)?;
        let ready = Ready { source, directory, sandbox, sandbox_config, volumes, images, ips };
        self.containers(&ready).await
    }

    async fn run_sandbox(
        &self,
        pod: &Pod,
        config: &PodSandboxConfig,
    ) -> Result<String, StartError> {
        let handler = self.manifest.handler(pod);
        let requested = handler.clone();
        let name = pod.meta.to_string();
        let cri = self.cri.clone();
        let config = config.clone();
        let call = async move { cri.run_sandbox(&name, config, &handler).await };
        let result = self.calls.run(call).await;
        result.map_err(|source| match source.code() {
            Some(_) if !requested.is_empty() => StartError::Handler { handler: requested, source },
            _ => source.into(),
        })
    }

    async fn containers(&self, ready: &Ready<'_>) -> Result<Outcome, StartError> {
        for container in &ready.source.pod.init_containers {
            let started = self.container(ready, container).await?;
            let exited = wait::until_exit(self.cri, started).await?;
            if exited.code != 0 {
                return Ok(Outcome::InitFailed(exited));
            }
        }
        let mut started = Vec::new();
        for container in &ready.source.pod.containers {
            started.push(self.container(ready, container).await?);
        }
        Ok(Outcome::Running(started))
    }

    async fn container(
        &self,
        ready: &Ready<'_>,
        container: &Container,
    ) -> Result<StartedContainer, StartError> {
        let pod = ready.source.pod;
        let image = ready.images.get(&container.image).cloned().unwrap_or_default();
        let facts = ContainerFacts { image, pod_ips: &ready.ips };
        let mut config = convert::container_config(ready.source, container, &facts)
            .map_err(|source| StartError::Convert { document: pod.document.clone(), source })?;
        let message = ready.directory.file(&format!("termination_{}", container.name));
        write_file(&message, b"", 0o666)?;
        config.mounts = self.mounts(ready, container, &message)?;
        let log = ready.directory.create_log(&log_path(&container.name))?;
        let log = match &self.output {
            Some(output) => {
                let printer = Printer::new(Arc::clone(output), self.prefix(pod, container));
                Some(Follower::start(&log, printer)?)
            }
            None => None,
        };
        let name = format!("{}/{}", pod.meta, container.name);
        let cri = self.cri.clone();
        let sandbox = ready.sandbox.clone();
        let sandbox_config = ready.sandbox_config.clone();
        let call = async move {
            let id = cri.create_container(&name, &sandbox, config, sandbox_config).await?;
            cri.start_container(&name, &id).await.map(|()| id)
        };
        let id = self.calls.run(call).await?;
        Ok(StartedContainer {
            pod: pod.meta.to_string(),
            name: container.name.clone(),
            id,
            log,
            message,
        })
    }

    /// Lines get a prefix only if they could come from several containers.
    fn prefix(&self, pod: &Pod, container: &Container) -> Option<String> {
        if self.manifest.pods.len() > 1 {
            Some(format!("{}/{}", pod.meta.name, container.name))
        } else if pod.all_containers().count() > 1 {
            Some(container.name.clone())
        } else {
            None
        }
    }

    fn mounts(
        &self,
        ready: &Ready<'_>,
        container: &Container,
        message: &Path,
    ) -> Result<Vec<Mount>, StartError> {
        let pod = ready.source.pod;
        let mut mounts = Vec::new();
        for (at, mount) in container.mounts.iter().enumerate() {
            // The manifest's checks refuse mounts of volumes that do not exist.
            let Some(volume) = ready.volumes.get(&mount.volume) else { continue };
            let part = convert::sub_path(ready.source, container, mount, &ready.ips)
                .map_err(|source| StartError::Convert { document: pod.document.clone(), source })?;
            let path = match part {
                None => volume.path.clone(),
                Some(part) => {
                    let target = ready.directory.part(&container.name, at);
                    volumes::bind_part(&volume.path, &part, &target).map_err(|source| {
                        StartError::SubPath {
                            mount: format!("{}: {}", pod.document, mount.path),
                            source,
                        }
                    })?;
                    target
                }
            };
            mounts.push(convert::volume_mount(mount, &path, volume.read_only));
        }
        let hosts = ready.directory.file("hosts");
        for (target, file) in [
            ("/etc/hosts", hosts.as_path()),
            (container.termination_message_path.as_str(), message),
        ] {
            if !mounts.iter().any(|mount| mount.container_path == target) {
                mounts.push(Mount {
                    container_path: target.to_owned(),
                    host_path: file.display().to_string(),
                    ..Mount::default()
                });
            }
        }
        Ok(mounts)
    }
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), NodeError> {
    fs::write(path, bytes).map_err(NodeError::at("write", path))?;
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(NodeError::at("change the mode of", path))
}
