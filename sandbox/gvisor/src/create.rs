//! The steps that every container takes to `runsc create`, whether it launches a sandbox or joins
//! one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use runsc::{RunscId, StateFiles};
use sandbox_core::stdio::{self, ConsoleSocket, Owner, ProcessFds, Streams};
use sandbox_core::{Bundle, CreateContainer, Error, RootfsMount};
use sandbox_host::ProcessRef;
use sandbox_host::mounts::{self, MountTable};

use crate::container::GvisorContainer;
use crate::error::GvisorError;
use crate::exec::Defaults;
use crate::init::{Origin, PreparedInit};
use crate::paths;
use crate::pod::Pod;
use crate::purge::{self, Remains};
use crate::record::Record;
use crate::runtime::Runtime;
use crate::spec::{self, Placement};

/// A container that `runsc create` has made.
pub(crate) struct NewContainer {
    id: RunscId,
    bundle: PathBuf,
    owner: Owner,
    defaults: Defaults,
    streams: Streams,
    /// Streams for `runsc start`; taken by [`Placement::First`] at its creation, and none with a
    /// terminal.
    pub(crate) stdio: Option<ProcessFds>,
    image: Option<PathBuf>,
    shares_pids: bool,
}

impl NewContainer {
    /// The container and its first process, in the sandbox `pod`.
    pub(crate) fn enter(
        self,
        runtime: &Arc<Runtime>,
        pod: &Arc<Pod>,
        origin: Origin,
    ) -> (GvisorContainer, PreparedInit) {
        pod.join(&self.id);
        let streams = Arc::new(self.streams);
        let init = PreparedInit {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            runtime: Arc::clone(runtime),
            pod: Arc::clone(pod),
            streams: Arc::clone(&streams),
            image: self.image,
            shares_pids: self.shares_pids,
            origin,
        };
        let container = GvisorContainer {
            id: self.id,
            bundle: self.bundle,
            runtime: Arc::clone(runtime),
            pod: Arc::clone(pod),
            owner: self.owner,
            defaults: self.defaults,
            _streams: streams,
        };
        (container, init)
    }
}

/// Refuses an id that runsc knows: Debian's would remove the first container's state and leave
/// its processes running.
pub(crate) fn check_new(runtime: &Runtime, id: &RunscId) -> Result<(), GvisorError> {
    match StateFiles::sandbox_of(runtime.runsc.root(), id) {
        Some(_) => Err(GvisorError::Exists(id.to_string())),
        None => Ok(()),
    }
}

/// Makes a container up to its start. After a failure the caller calls [`discard`].
pub(crate) async fn create(
    runtime: &Runtime,
    request: CreateContainer,
    placement: Placement<'_>,
    record: &Record,
) -> Result<NewContainer, GvisorError> {
    let CreateContainer { id, mut bundle, rootfs, stdio: paths, checkpoint } = request;
    let runsc_id = RunscId::new(id.as_str());
    let config = &runtime.config;
    let process = bundle.spec().process().as_ref().ok_or(GvisorError::NoArgs)?;
    let defaults = Defaults::of(process, config.net_raw());
    let shares_pids = spec::shares_pids(bundle.spec());
    runtime.runsc.prepare_root()?;
    record.store(bundle.path())?;
    mount_rootfs(runtime, &bundle, &rootfs)?;

    let given = bundle.json();
    let allow = &config.allow_annotations;
    let mut edited = spec::edit(given, &runsc_id, placement, allow, paths.terminal);
    paths::spare_nested(&mut edited, &mount_table()?);
    paths::protect(&mut edited, &root_of(&bundle), bundle.path())?;
    bundle.replace(edited)?;

    let owner = Owner { namespace: runtime.namespace.clone(), container: id };
    let host = &*runtime.host;
    let id = runsc_id;
    let mut later = None;
    let streams = if paths.terminal {
        // Not in the bundle, whose path is too long for a socket.
        let console = ConsoleSocket::bind(config.root.join(console_name()))?;
        runtime.runsc.create(&id, bundle.path(), Some(console.path()), None).await?;
        let master = console.receive(config.timeouts.call()).await?;
        stdio::attach_terminal(master, &paths, &owner, host).await?
    } else {
        let (fds, streams) = stdio::open(&paths, &owner, host).await?;
        let now = match placement {
            Placement::First { .. } => Some(fds),
            Placement::Joins { .. } => {
                later = Some(fds);
                None
            }
        };
        runtime.runsc.create(&id, bundle.path(), None, now).await?;
        streams
    };
    let bundle = bundle.path().to_owned();
    Ok(NewContainer {
        id,
        bundle,
        owner,
        defaults,
        streams,
        stdio: later,
        image: checkpoint,
        shares_pids,
    })
}

/// Cleans up after a failed creation; `joined` is the sandbox that the container was to join. Its
/// own errors are logged: the caller has the first one.
pub(crate) async fn discard(runtime: &Runtime, id: &RunscId, bundle: &Path, joined: Option<&Pod>) {
    let runsc = &runtime.runsc;
    let remains = Remains { id, bundle, root: runsc.root(), runsc: Some(runsc) };
    let running = joined.filter(|pod| pod.exit.get().is_none()).map(|pod| &pod.control);
    if let Err(error) = purge::container(&remains, running, &*runtime.host).await {
        tracing::warn!(container = %id, "after a failed create: {}", Error::from(error));
    }
    if let Some(pod) = joined {
        pod.leave(id);
    }
}

/// Adds `processes` to the record in `bundle`.
pub(crate) fn note_processes(
    bundle: &Path,
    processes: impl IntoIterator<Item = ProcessRef>,
) -> Result<(), GvisorError> {
    if let Some(mut record) = Record::load(bundle)? {
        record.processes.extend(processes);
        record.store(bundle)?;
    }
    Ok(())
}

fn mount_rootfs(
    runtime: &Runtime,
    bundle: &Bundle,
    mounts: &[RootfsMount],
) -> Result<(), GvisorError> {
    if mounts.is_empty() {
        let path = root_of(bundle);
        return if path.is_dir() { Ok(()) } else { Err(GvisorError::Rootfs { path }) };
    }
    let rootfs = bundle.rootfs();
    fs::create_dir_all(&rootfs).map_err(|source| GvisorError::File {
        step: "making",
        path: rootfs.clone(),
        source,
    })?;
    for mount in mounts {
        runtime.host.mount(mount, &rootfs)?;
    }
    Ok(())
}

/// Where the root file system is that `bundle` names.
fn root_of(bundle: &Bundle) -> PathBuf {
    let given = bundle.spec().root().as_ref().map(|root| root.path().as_path());
    bundle.path().join(given.unwrap_or(Path::new("rootfs")))
}

/// The host's mount table.
pub(crate) fn mount_table() -> Result<MountTable, GvisorError> {
    let path = mounts::CURRENT.into();
    MountTable::current().map_err(|source| GvisorError::File { step: "reading", path, source })
}

/// A name no other console socket has.
fn console_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("console-{}-{number}", std::process::id())
}

/// Reads the process id that `runsc create` left in `file`.
pub(crate) fn read_pid(file: PathBuf) -> Result<u32, GvisorError> {
    let text = fs::read_to_string(&file);
    let number = text.and_then(|text| text.trim().parse().map_err(io::Error::other));
    let step = "reading the sandbox's process id from";
    number.map_err(|source| GvisorError::File { step, path: file, source })
}
