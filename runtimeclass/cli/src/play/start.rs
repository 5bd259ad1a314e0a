//! Starting one Pod.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::{Mount, PodSandboxConfig};

use super::follow::{self, Ended};
use super::{PlayError, images};
use crate::cri::Cri;
use crate::host::HostError;
use crate::interrupt::Uncut;
use crate::logs::{Follower, Output, Printer};
use crate::manifest::{Container, Manifest, Pod, PullPolicy};
use crate::pod::{
    self, ContainerFacts, ImageFacts, NodeFacts, Placement, Source, container_config, log_path,
};
use crate::state::{PodDirectory, Record, StateError};
use crate::volumes::{self, Prepared};
use crate::{cgroup, down, node};

/// What is the same for every Pod of a run.
#[derive(Debug)]
pub(super) struct Starter<'a> {
    pub(super) cri: &'a Cri,
    pub(super) manifest: &'a Manifest,
    pub(super) node: &'a NodeFacts,
    pub(super) state: &'a Path,
    pub(super) pull: Option<PullPolicy>,
    /// How cgroups are named; the runtime knows if this does not say.
    pub(super) cgroup_driver: Option<cgroup::Driver>,
    /// Where logs go; nowhere when they are not followed.
    pub(super) output: Option<Arc<Output>>,
    pub(super) uncut: Uncut,
}

/// A container that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pod: String,
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) log: Option<Follower>,
    /// The file behind its terminationMessagePath.
    pub(crate) message: PathBuf,
}

/// How far a Pod came.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Its containers were started.
    Running(Vec<Started>),
    /// An init container failed, so its containers were not started.
    InitFailed(Ended),
}

/// A Pod between its sandbox and its containers.
struct Ready<'a> {
    source: Source<'a>,
    directory: &'a PodDirectory,
    sandbox: String,
    sandbox_config: PodSandboxConfig,
    volumes: BTreeMap<String, Prepared>,
    images: BTreeMap<String, ImageFacts>,
    ips: Vec<String>,
}

impl Starter<'_> {
    /// Reserves the Pod's name on this node.
    pub(super) async fn reserve(&self, pod: &Pod) -> Result<(Placement, PodDirectory), PlayError> {
        let (namespace, name) = (pod.meta.namespace.clone(), pod.meta.name.clone());
        if !down::sandboxes(self.cri, Some((&namespace, &name))).await?.is_empty() {
            return Err(StateError::Exists { pod: pod.meta.to_string() }.into());
        }
        let driver = match self.cgroup_driver {
            Some(driver) => driver,
            None => self.cri.cgroup_driver(&pod::handler(self.manifest, pod)).await?,
        };
        let uid = node::new_uid()?;
        let directory =
            PodDirectory::create(self.state, &Record { namespace, name, uid: uid.clone() })?;
        let cgroup_parent = cgroup::parent(&uid, driver);
        Ok((Placement { uid, directory: directory.path().to_owned(), cgroup_parent }, directory))
    }

    /// Starts the Pod in its reserved place. After an error the caller removes the Pod.
    pub(super) async fn start(
        &self,
        pod: &Pod,
        placement: &Placement,
        directory: &PodDirectory,
    ) -> Result<Outcome, PlayError> {
        let source = Source { manifest: self.manifest, pod, node: self.node, placement };
        let sandbox_config = pod::sandbox_config(source);
        let images =
            images::ensure(self.cri, self.manifest, pod, self.pull, &sandbox_config).await?;
        let volumes = volumes::prepare(self.manifest, pod, &directory.volumes())?;
        if cgroup::is_slice(&placement.cgroup_parent) {
            eprintln!(
                "bulkhead: note: systemd manages cgroups, so the Pod's own cgroup gets no limits"
            );
        } else {
            cgroup::create(&placement.uid, &pod::pod_limits(self.manifest, pod))?;
        }
        let sandbox = self.run_sandbox(pod, &sandbox_config).await?;
        let status = self.cri.sandbox_status(&sandbox).await?;
        let network = status.network.unwrap_or_default();
        let mut ips = vec![network.ip];
        ips.extend(network.additional_ips.into_iter().map(|more| more.ip));
        ips.retain(|ip| !ip.is_empty());
        let hosts = pod::hosts_file(source, &ips, &node::hosts()?);
        write_file(&directory.file("hosts"), hosts.as_bytes(), 0o644)?;
        let ready = Ready { source, directory, sandbox, sandbox_config, volumes, images, ips };
        self.containers(&ready).await
    }

    async fn run_sandbox(&self, pod: &Pod, config: &PodSandboxConfig) -> Result<String, PlayError> {
        let handler = pod::handler(self.manifest, pod);
        let (cri, name, config) = (self.cri.clone(), pod.meta.to_string(), config.clone());
        let shown = handler.clone();
        let call = async move { cri.run_sandbox(&name, config, &handler).await };
        let result = self.uncut.run(call).await;
        result.map_err(|source| match source.code() {
            Some(_) if !shown.is_empty() => PlayError::Handler { handler: shown, source },
            _ => source.into(),
        })
    }

    async fn containers(&self, ready: &Ready<'_>) -> Result<Outcome, PlayError> {
        for container in &ready.source.pod.init_containers {
            let started = self.container(ready, container).await?;
            let ended = follow::until_ended(self.cri, started).await?;
            if ended.code != 0 {
                return Ok(Outcome::InitFailed(ended));
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
    ) -> Result<Started, PlayError> {
        let pod = ready.source.pod;
        let image = ready.images.get(&container.image).cloned().unwrap_or_default();
        let facts = ContainerFacts { image, pod_ips: &ready.ips };
        let mut config = container_config(ready.source, container, &facts)
            .map_err(|source| PlayError::Convert { document: pod.document.clone(), source })?;
        let message = ready.directory.file(&format!("termination_{}", container.name));
        write_file(&message, b"", 0o666)?;
        config.mounts = self.mounts(ready, container, &message)?;
        let log = ready.directory.create_log(&log_path(container))?;
        let log = match &self.output {
            Some(output) => {
                let printer = Printer::new(Arc::clone(output), self.prefix(pod, container));
                Some(Follower::start(&log, printer)?)
            }
            None => None,
        };
        let name = format!("{}/{}", pod.meta, container.name);
        let (cri, sandbox, sandbox_config, shown) =
            (self.cri.clone(), ready.sandbox.clone(), ready.sandbox_config.clone(), name.clone());
        let call = async move {
            let id = cri.create_container(&shown, &sandbox, config, sandbox_config).await?;
            cri.start_container(&shown, &id).await.map(|()| id)
        };
        let id = self.uncut.run(call).await?;
        Ok(Started { pod: pod.meta.to_string(), name: container.name.clone(), id, log, message })
    }

    /// Lines are marked only where they could come from several containers.
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
    ) -> Result<Vec<Mount>, PlayError> {
        let pod = ready.source.pod;
        let mut mounts = Vec::new();
        for (at, mount) in container.mounts.iter().enumerate() {
            // The manifest's check has refused mounts of volumes that are not there.
            let Some(volume) = ready.volumes.get(&mount.volume) else { continue };
            let part = pod::sub_path(ready.source, container, mount, &ready.ips)
                .map_err(|source| PlayError::Convert { document: pod.document.clone(), source })?;
            let path = match part {
                None => volume.path.clone(),
                Some(part) => {
                    let target = ready.directory.part(&container.name, at);
                    volumes::part_of(&volume.path, &part, &target).map_err(|source| {
                        PlayError::SubPath {
                            place: format!("{}: {}", pod.document, mount.path),
                            source,
                        }
                    })?;
                    target
                }
            };
            mounts.push(pod::volume_mount(mount, &path, volume.read_only));
        }
        let hosts = ready.directory.file("hosts");
        for (target, file) in [
            ("/etc/hosts", hosts.as_path()),
            (container.termination_message_path.as_str(), message),
        ] {
            if !mounts.iter().any(|mount| mount.container_path == target) {
                let (container_path, host_path) = (target.to_owned(), file.display().to_string());
                mounts.push(Mount { container_path, host_path, ..Mount::default() });
            }
        }
        Ok(mounts)
    }
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), HostError> {
    fs::write(path, bytes).map_err(HostError::at("write", path))?;
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(HostError::at("change the mode of", path))
}
