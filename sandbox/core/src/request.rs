//! What containerd asks of a sandbox, in this project's own terms.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};
use sandbox_host::RootfsMount;

use crate::bundle::Bundle;
use crate::id::Id;

/// A sandbox to launch. On the classic road all of it comes from the first container's
/// configuration ([`LaunchSandbox::with_container`]), on containerd's sandbox service from
/// CreateSandbox.
#[derive(Debug)]
pub struct LaunchSandbox {
    /// Its id.
    pub id: Id,
    /// The directory that keeps its records, for a clean-up after a crash.
    pub bundle: PathBuf,
    /// The Pod's network.
    pub network: NetworkNamespace,
    /// The Pod's cgroup, as `linux.cgroupsPath` of the OCI runtime specification names it.
    pub cgroups_path: Option<String>,
    /// The Pod's annotations: CRI's sizes, and what the handler's file lets a Pod set.
    pub annotations: HashMap<String, String>,
    /// Limits of the whole where no annotation has them.
    pub resources: Option<Resources>,
    /// Made together with the sandbox.
    pub first: Option<First>,
}

/// A sandbox's first container.
#[derive(Debug)]
pub struct First {
    /// The container.
    pub container: CreateContainer,
    /// CRI's pause container: it stands for the Pod, has no workload whose limits count, and the
    /// sandbox exits with it.
    pub pause: bool,
}

/// The network namespace that a configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// One that exists: a Pod's.
    Path(PathBuf),
    /// A new and empty one.
    New,
    /// The host's.
    Host,
}

impl NetworkNamespace {
    /// The one that `spec` names.
    pub fn of(spec: &Spec) -> Self {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces
            .and_then(|all| all.iter().find(|ns| ns.typ() == LinuxNamespaceType::Network));
        match network.map(|namespace| namespace.path()) {
            None => Self::Host,
            Some(Some(path)) if !path.as_os_str().is_empty() => Self::Path(path.clone()),
            Some(_) => Self::New,
        }
    }
}

impl LaunchSandbox {
    /// A sandbox for `container`, which names it and says what it needs.
    pub fn with_container(container: CreateContainer, pause: bool) -> Self {
        let spec = container.bundle.spec();
        let linux = spec.linux().as_ref();
        let cgroup = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let cgroup = cgroup.and_then(|path| path.to_str()).filter(|path| !path.is_empty());
        Self {
            id: container.id.clone(),
            bundle: container.bundle.path().to_owned(),
            network: NetworkNamespace::of(spec),
            cgroups_path: cgroup.map(str::to_owned),
            annotations: spec.annotations().clone().unwrap_or_default(),
            resources: linux.and_then(|linux| linux.resources().clone()),
            first: Some(First { container, pause }),
        }
    }
}

/// Where a process's streams come from and go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// Path of a fifo, or none.
    pub stdin: Option<String>,
    /// Path of a fifo, `file://PATH`, `binary://PATH?ARGS`, or none.
    pub stdout: Option<String>,
    /// As `stdout`; unused with a terminal.
    pub stderr: Option<String>,
    /// One pseudo-terminal for all three.
    pub terminal: bool,
}

/// A container to make.
#[derive(Debug)]
pub struct CreateContainer {
    /// Its id.
    pub id: Id,
    /// Its bundle, config.json read.
    pub bundle: Bundle,
    /// Mounts to put on the bundle's `rootfs`, in order.
    pub rootfs: Vec<RootfsMount>,
    /// Its streams.
    pub stdio: StdioPaths,
    /// A checkpoint's directory to restore from.
    pub checkpoint: Option<PathBuf>,
}

/// A process to add to a running container.
#[derive(Debug, Clone)]
pub struct ExecProcess {
    /// Its id, unique within the container.
    pub id: Id,
    /// The program, its arguments and its user.
    pub spec: ProcessSpec,
    /// Its streams.
    pub stdio: StdioPaths,
}

/// Limits to put on a running container: the OCI runtime specification's own type.
pub type Resources = LinuxResources;
