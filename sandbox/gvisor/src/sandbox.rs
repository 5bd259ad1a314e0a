//! A Pod's sandbox: launched with its first container, joined by others.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use runsc::{Control, RunscId, StateFiles};
use sandbox_core::{
    CreateContainer, Created, Exit, First, Launched, NetworkNamespace, Resources, Result, Sandbox,
};
use sandbox_host::ProcessRef;
use sandbox_host::mounts::MountTable;

use crate::create::{self, NewContainer};
use crate::error::GvisorError;
use crate::group::Group;
use crate::init::Origin;
use crate::pod::{self, Pod};
use crate::record::Record;
use crate::runtime::Runtime;
use crate::spec::{self, Placement};

/// A running sandbox.
#[derive(Debug)]
pub(crate) struct GvisorSandbox {
    runtime: Arc<Runtime>,
    pod: Arc<Pod>,
}

/// What a sandbox is launched with.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) first: First,
    pub(crate) network: NetworkNamespace,
    pub(crate) cgroups_path: Option<String>,
}

/// Launches a sandbox: `runsc create` of its first container starts the sandbox's process.
pub(crate) async fn launch(runtime: Runtime, launch: Launch) -> Result<Launched, GvisorError> {
    let runtime = Arc::new(runtime);
    let id = RunscId::new(launch.first.container.id.as_str());
    let bundle = launch.first.container.bundle.path().to_owned();
    create::check_new(&runtime, &id)?;
    match begin(&runtime, launch).await {
        Ok(launched) => Ok(launched),
        Err(error) => {
            create::discard(&runtime, &id, &bundle, None).await;
            Err(error)
        }
    }
}

async fn begin(runtime: &Arc<Runtime>, launch: Launch) -> Result<Launched, GvisorError> {
    let Launch { first: First { container, pause }, network, cgroups_path } = launch;
    let id = RunscId::new(container.id.as_str());
    let bundle = container.bundle.path().to_owned();
    let shm = spec::shm_source(container.bundle.json()).map(str::to_owned);
    let resources = resources(&container);
    let group = Group::joined(cgroups_path.as_deref(), runtime.config.memory_overhead);
    let record = record(runtime, &id, &container, &group);

    let table = create::mount_table()?;
    let shm_size = shm.as_deref().and_then(|path| size_of(path, &table));
    let placement = Placement::First { shm_size };
    let made = create::create(runtime, container, placement, &record).await?;

    let pid = create::read_pid(runsc::pid_file(&bundle))?;
    // Watched before it is marked: an exit in between is kept for the watcher.
    let watch = runtime.host.watch(pid)?;
    let process = ProcessRef::of(pid)
        .ok_or_else(|| GvisorError::ExitedEarly { sandbox: id.to_string(), pid })?;
    let files = StateFiles::new(runtime.runsc.root(), &id, &id);
    create::note_processes(&bundle, [process].into_iter().chain(files.gofer()))?;
    if !pause {
        // It is a workload itself.
        group.enter(&id, resources.as_ref())?;
    }
    let control = Control::new(files.socket(), runtime.config.timeouts.call());
    let pod = Arc::new(Pod::new(pod::Launched { id, process, control, shm, group }, watch));
    let first = created(made, runtime, &pod, Origin::Launched(network));
    let sandbox = Arc::new(GvisorSandbox { runtime: Arc::clone(runtime), pod });
    Ok(Launched { sandbox, first: Some(first) })
}

fn created(made: NewContainer, runtime: &Arc<Runtime>, pod: &Arc<Pod>, origin: Origin) -> Created {
    let (container, init) = made.enter(runtime, pod, origin);
    Created { container: Arc::new(container), init: Box::new(init) }
}

fn resources(request: &CreateContainer) -> Option<Resources> {
    request.bundle.spec().linux().as_ref()?.resources().clone()
}

/// What the bundle of `request` remembers of a container in `sandbox`, which removes `group` with
/// it if the sandbox is its own.
fn record(
    runtime: &Runtime,
    sandbox: &RunscId,
    request: &CreateContainer,
    group: &Group,
) -> Record {
    let launches = *sandbox == RunscId::new(request.id.as_str());
    let hooks = request.bundle.json().get("hooks");
    Record {
        sandbox: sandbox.clone(),
        root: runtime.runsc.root().to_owned(),
        processes: Vec::new(),
        network: None,
        hooks: hooks.is_some_and(|hooks| !hooks.is_null()),
        cgroup: group.cgroup().filter(|_| launches).cloned(),
    }
}

impl GvisorSandbox {
    async fn join(&self, request: CreateContainer) -> Result<Created, GvisorError> {
        let Self { runtime, pod } = self;
        let id = RunscId::new(request.id.as_str());
        let bundle = request.bundle.path().to_owned();
        pod.group.enter(&id, resources(&request).as_ref())?;
        let record = record(runtime, &pod.id, &request, &pod.group);
        let placement = Placement::Joins { sandbox: &pod.id, shm: pod.shm.as_deref() };
        let mut made = create::create(runtime, request, placement, &record).await?;
        let files = StateFiles::new(runtime.runsc.root(), &pod.id, &id);
        create::note_processes(&bundle, files.gofer())?;
        let stdio = made.stdio.take();
        Ok(created(made, runtime, pod, Origin::Joined(stdio)))
    }
}

#[async_trait]
impl Sandbox for GvisorSandbox {
    async fn create(&self, request: CreateContainer) -> Result<Created> {
        let id = RunscId::new(request.id.as_str());
        let bundle = request.bundle.path().to_owned();
        self.pod.check_runs()?;
        create::check_new(&self.runtime, &id)?;
        match self.join(request).await {
            Ok(created) => Ok(created),
            Err(error) => {
                create::discard(&self.runtime, &id, &bundle, Some(&self.pod)).await;
                Err(error.into())
            }
        }
    }

    async fn stop(&self) -> Result<()> {
        Ok(self.pod.kill(self.runtime.runsc.delete_deadline()).await?)
    }

    async fn exited(&self) -> Exit {
        self.pod.exit.wait().await
    }
}

/// The size of the file system that is mounted at `path`, in bytes. A plain directory has none of
/// its own.
fn size_of(path: &str, table: &MountTable) -> Option<u64> {
    table.at(Path::new(path))?;
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    Some(found.blocks().saturating_mul(found.fragment_size()))
}
