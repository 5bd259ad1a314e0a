//! A Pod's sandbox: the first container makes it, others join.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use async_trait::async_trait;
use sandbox_core::bundle::Bundle;
use sandbox_core::exit::ExitCell;
use sandbox_core::host::{Host, ProcessRef};
use sandbox_core::mounts::{self, MountTable};
use sandbox_core::stdio::{self, ConsoleSocket, Owner, ProcessFds, Streams};
use sandbox_core::{Container, CreateContainer, Exit, Id, Result, Role, Sandbox, StdioPaths};

use crate::config::{GvisorConfig, Network};
use crate::container::GvisorContainer;
use crate::control::Control;
use crate::error::GvisorError;
use crate::exec::{Defaults, Home};
use crate::group::Group;
use crate::init::{Init, Prepared};
use crate::paths;
use crate::pod::{Launched, Pod};
use crate::purge::{self, Remains};
use crate::record::{Record, StateFiles};
use crate::runsc::{Runsc, pid_file};
use crate::spec::{self, NetworkNamespace, Placement};

/// A sandbox, made or still to be made.
#[derive(Debug)]
pub(crate) struct GvisorSandbox {
    pub(crate) config: Arc<GvisorConfig>,
    pub(crate) namespace: Id,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) runsc: Arc<Runsc>,
    pod: OnceLock<Arc<Pod>>,
    opening: tokio::sync::Mutex<()>,
    ended: ExitCell,
    containers: Mutex<Vec<Weak<GvisorContainer>>>,
}

/// A container's streams, on both sides of its creation.
struct Wiring {
    console: Option<ConsoleSocket>,
    /// For runsc, unless there is a terminal.
    fds: Option<ProcessFds>,
    streams: Option<Streams>,
}

impl GvisorSandbox {
    pub(crate) fn new(
        config: Arc<GvisorConfig>,
        namespace: Id,
        host: Arc<dyn Host>,
        runsc: Arc<Runsc>,
    ) -> Self {
        let (pod, ended) = (OnceLock::new(), ExitCell::new());
        let (opening, containers) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { config, namespace, host, runsc, pod, opening, ended, containers }
    }

    /// The sandbox that the container is to join; `None` if it makes it.
    fn joined(&self, id: &str, role: &Role) -> Result<Option<Arc<Pod>>, GvisorError> {
        let pod = self.pod.get();
        match (role, pod) {
            (Role::Sandbox, Some(pod)) => Err(GvisorError::SandboxExists(pod.id.clone())),
            (Role::Sandbox | Role::Standalone, None) => Ok(None),
            (Role::Member { sandbox }, Some(pod)) if pod.id == sandbox.as_str() => {
                Ok(Some(Arc::clone(pod)))
            }
            (Role::Member { sandbox }, _) => {
                let (id, sandbox) = (id.to_owned(), sandbox.to_string());
                Err(GvisorError::NoSandbox { id, sandbox })
            }
            // A group of containers without a Pod shares a sandbox all the same.
            (Role::Standalone, Some(pod)) => Ok(Some(Arc::clone(pod))),
        }
    }

    /// Everything up to a container that can be started. What fails half-way is taken down by
    /// the caller.
    async fn make(
        &self,
        request: &mut CreateContainer,
        joins: Option<Arc<Pod>>,
    ) -> Result<GvisorContainer, GvisorError> {
        let id = request.id.as_str();
        let given = request.bundle.spec().clone();
        let json = request.bundle.json().clone();
        let process = given.process().as_ref().ok_or(GvisorError::NoArgs)?;
        let defaults = Defaults::of(process, self.config.net_raw());
        let resources = given.linux().as_ref().and_then(|linux| linux.resources().clone());
        self.prepare(request, joins.as_deref()).await?;

        let table = mount_table()?;
        let placement = match &joins {
            Some(pod) => Placement::Joins { sandbox: &pod.id, shm: pod.shm.as_deref() },
            None => {
                let shm = spec::shm_source(&json);
                Placement::First { shm_size: shm.and_then(|path| size_of(path, &table)) }
            }
        };
        let (allow, terminal) = (&self.config.allow_annotations, request.stdio.terminal);
        let mut edited = spec::edit(&json, id, placement, allow, terminal);
        paths::spare_nested(&mut edited, &table);
        paths::protect(&mut edited, &root_of(&request.bundle), request.bundle.path())?;
        request.bundle.replace(edited)?;
        if let Some(pod) = &joins {
            pod.group.enter(id, resources.as_ref())?;
        }
        let owner = Owner { namespace: self.namespace.clone(), container: request.id.clone() };
        let mut wiring = self.wire(&request.stdio, &owner).await?;
        let bundle = request.bundle.path().to_owned();
        // The sandbox takes the streams of its first container along, others bring theirs later.
        let now = if joins.is_none() { wiring.fds.take() } else { None };
        let console = wiring.console.as_ref().map(ConsoleSocket::path);
        self.runsc.create(id, &bundle, console, now).await?;
        let streams = self.connect(&mut wiring, &request.stdio, &owner).await?;

        let network = joins.is_none().then(|| spec::network_namespace(&json));
        let pod = match joins {
            Some(pod) => self.note_gofer(pod, id, &bundle)?,
            None => self.open(request, &json, resources.as_ref())?,
        };
        pod.join(id);
        let prepared = Prepared { stdio: wiring.fds, image: request.checkpoint.clone(), network };
        let init = Arc::new(Init::new(
            id.to_owned(),
            bundle.clone(),
            self.runsc.network(),
            Arc::clone(&pod),
            Arc::clone(&self.runsc),
            streams,
            prepared,
        ));
        Ok(GvisorContainer {
            id: id.to_owned(),
            bundle,
            home: Home { pod, init, owner, host: Arc::clone(&self.host) },
            runsc: Arc::clone(&self.runsc),
            defaults,
            net_raw: self.config.net_raw(),
            execs: Mutex::default(),
        })
    }

    /// Checks what can be checked, leaves the record, and mounts the root file system.
    async fn prepare(
        &self,
        request: &CreateContainer,
        joins: Option<&Pod>,
    ) -> Result<(), GvisorError> {
        let json = request.bundle.json();
        let outside = spec::network_namespace(json) == NetworkNamespace::Host;
        if joins.is_none() && outside && self.config.network == Network::Sandbox {
            if !self.config.allow_host_network {
                return Err(GvisorError::HostNetwork);
            }
            self.runsc.use_host_network();
        }
        let id = request.id.as_str();
        let sandbox = joins.map_or(id, |pod| &pod.id).to_owned();
        self.runsc.prepare_root()?;
        let path = cgroups_path(request.bundle.spec());
        let record = Record {
            sandbox,
            root: self.runsc.root().to_owned(),
            processes: Vec::new(),
            network: None,
            hooks: json.get("hooks").is_some_and(|hooks| !hooks.is_null()),
            cgroup: joins.map_or_else(|| Group::named(path), |_| None),
        };
        record.store(request.bundle.path())?;
        let rootfs = request.bundle.rootfs();
        if request.rootfs.is_empty() {
            let path = root_of(&request.bundle);
            if !path.is_dir() {
                return Err(GvisorError::Rootfs { path });
            }
        } else {
            std::fs::create_dir_all(&rootfs).map_err(|source| GvisorError::File {
                step: "making",
                path: rootfs.clone(),
                source,
            })?;
        }
        for mount in &request.rootfs {
            self.host.mount(mount, &rootfs)?;
        }
        Ok(())
    }

    async fn wire(&self, paths: &StdioPaths, owner: &Owner) -> Result<Wiring, GvisorError> {
        if !paths.terminal {
            let (fds, streams) = stdio::open(paths, owner, &*self.host).await?;
            return Ok(Wiring { console: None, fds: Some(fds), streams: Some(streams) });
        }
        // Not in the bundle, whose path is too long for a socket.
        let console = ConsoleSocket::bind(self.config.root.join(console_name()))?;
        Ok(Wiring { console: Some(console), fds: None, streams: None })
    }

    /// The streams of a created container, with the terminal that runsc sent for it.
    async fn connect(
        &self,
        wiring: &mut Wiring,
        paths: &StdioPaths,
        owner: &Owner,
    ) -> Result<Streams, GvisorError> {
        match (wiring.streams.take(), wiring.console.take()) {
            (Some(streams), _) => Ok(streams),
            (None, Some(console)) => {
                let master = console.receive(self.config.timeouts.call()).await?;
                Ok(stdio::attach_terminal(master, paths, owner, &*self.host).await?)
            }
            (None, None) => unreachable!("wire gives one of them"),
        }
    }

    /// Takes over the sandbox that `create` has started.
    fn open(
        &self,
        request: &CreateContainer,
        json: &serde_json::Value,
        resources: Option<&sandbox_core::Resources>,
    ) -> Result<Arc<Pod>, GvisorError> {
        let (id, bundle) = (request.id.as_str(), request.bundle.path());
        let pid = read_pid(bundle)?;
        // Watch before the mark is taken: an end in between is kept for the watcher.
        let exit = self.host.watch(pid)?;
        let process = ProcessRef::of(pid)
            .ok_or_else(|| GvisorError::Stillborn { sandbox: id.to_owned(), pid })?;
        let files = StateFiles::new(self.runsc.root(), id, id);
        note_processes(bundle, [Some(process), files.gofer()])?;
        let control = Control::new(files.socket(), self.config.timeouts.call());
        // As it was given: runsc's copy names no group.
        let path = json.pointer("/linux/cgroupsPath").and_then(serde_json::Value::as_str);
        let group = Group::joined(path, self.config.memory_overhead);
        if request.role == Role::Standalone {
            // It is the workload itself, no "pause" beside it.
            group.enter(id, resources)?;
        }
        let shm = spec::shm_source(json).map(str::to_owned);
        let launched = Launched { id: id.to_owned(), process, control, shm, group };
        let pod = Arc::new(Pod::new(launched, exit, self.ended.clone()));
        // Creation of the first container is serialised, so nobody was quicker.
        Ok(Arc::clone(self.pod.get_or_init(|| pod)))
    }

    fn note_gofer(&self, pod: Arc<Pod>, id: &str, bundle: &Path) -> Result<Arc<Pod>, GvisorError> {
        let files = StateFiles::new(self.runsc.root(), &pod.id, id);
        note_processes(bundle, [files.gofer()])?;
        Ok(pod)
    }

    /// Takes down what a failed creation left.
    async fn discard(&self, id: &str, bundle: &Path, joined: Option<&Pod>) {
        let remains = Remains { id, bundle, root: self.runsc.root(), runsc: Some(&self.runsc) };
        let living = joined.filter(|pod| pod.ended.get().is_none()).map(|pod| &pod.control);
        if let Err(error) = purge::container(&remains, living, &*self.host).await {
            log::warn!("after a failed create: {}", sandbox_core::Error::from(error));
        }
        if let Some(pod) = joined {
            pod.leave(id);
        }
    }
}

#[async_trait]
impl Sandbox for GvisorSandbox {
    async fn create(&self, mut request: CreateContainer) -> Result<Arc<dyn Container>> {
        // Only the first has to be alone; those who join find the sandbox made.
        let opening = match self.pod.get() {
            Some(_) => None,
            None => Some(self.opening.lock().await),
        };
        let id = request.id.as_str().to_owned();
        let joins = self.joined(&id, &request.role)?;
        if let Some(pod) = &joins {
            pod.check_runs()?;
        }
        // Debian's runsc would take the first one's state away and leave it running.
        if StateFiles::sandbox_of(self.runsc.root(), &id).is_some() {
            return Err(GvisorError::Exists(id).into());
        }
        let bundle = request.bundle.path().to_owned();
        let made = self.make(&mut request, joins.clone()).await;
        drop(opening);
        match made {
            Ok(container) => {
                let container = Arc::new(container);
                let mut known = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
                known.retain(|other| other.strong_count() > 0);
                known.push(Arc::downgrade(&container));
                Ok(container)
            }
            Err(error) => {
                self.discard(&id, &bundle, joins.as_deref()).await;
                Err(error.into())
            }
        }
    }

    async fn stop(&self) -> Result<()> {
        let Some(pod) = self.pod.get() else { return Ok(()) };
        pod.kill(self.config.timeouts.delete()).await?;
        let containers = {
            let mut known = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *known)
        };
        let mut result = Ok(());
        for container in containers.iter().filter_map(Weak::upgrade) {
            result = result.and(container.delete().await);
        }
        result
    }

    async fn exited(&self) -> Exit {
        self.ended.wait().await
    }
}

/// Where the root file system is that `bundle` names.
fn root_of(bundle: &Bundle) -> PathBuf {
    let given = bundle.spec().root().as_ref().map(|root| root.path().as_path());
    bundle.path().join(given.unwrap_or(Path::new("rootfs")))
}

fn mount_table() -> Result<MountTable, GvisorError> {
    let path = mounts::CURRENT.into();
    MountTable::current().map_err(|source| GvisorError::File { step: "reading", path, source })
}

fn cgroups_path(spec: &oci_spec::runtime::Spec) -> Option<&str> {
    spec.linux().as_ref()?.cgroups_path().as_ref()?.to_str()
}

/// The size of the file system that is mounted at `path`, in bytes. A plain directory has none of
/// its own.
fn size_of(path: &str, table: &MountTable) -> Option<u64> {
    table.at(Path::new(path))?;
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    Some(found.blocks().saturating_mul(found.fragment_size()))
}

/// A name no other console socket has.
fn console_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("console-{}-{number}", std::process::id())
}

fn read_pid(bundle: &Path) -> Result<u32, GvisorError> {
    let path = pid_file(bundle);
    let text = std::fs::read_to_string(&path);
    let number = text.and_then(|text| text.trim().parse().map_err(std::io::Error::other));
    number.map_err(|source| GvisorError::File {
        step: "reading the sandbox's process id from",
        path,
        source,
    })
}

/// Adds `marks` to the record in `bundle`.
fn note_processes(
    bundle: &Path,
    marks: impl IntoIterator<Item = Option<ProcessRef>>,
) -> Result<(), GvisorError> {
    if let Some(mut record) = Record::load(bundle)? {
        record.processes.extend(marks.into_iter().flatten());
        record.store(bundle)?;
    }
    Ok(())
}
