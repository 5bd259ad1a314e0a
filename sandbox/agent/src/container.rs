//! A container: made, run, frozen, deleted.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::GUEST_ROOT;
use agent_api::agent::{BlockDevice, CreateContainerRequest, Stdio};
use libcontainer::oci_spec::runtime::{Capability, LinuxCapabilities, Spec};
use serde_json::{Map, Value, json};

use crate::boot::{PROGRAM, make_dir};
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, Kind, Result, invalid, late, missing, refused};
use crate::guest::{Guest, sysctl};
use crate::helper::LATE;
use crate::launch::{Job, launch};
use crate::process::Process;
use crate::rootfs::Rootfs;
use crate::storage::Held;
use crate::{devices, disk, limits, spec};

/// Execs that are not deleted, running or not.
const EXECS_MAX: usize = 512;

/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// libcontainer's start changes the working directory for a moment.
static STARTING: Mutex<()> = Mutex::new(());

/// A container of this guest.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    /// Its bundle, and whatever else is its own.
    dir: PathBuf,
    pub(crate) cgroup: Cgroup,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    spec: Spec,
    /// What it holds of the guest until it is deleted.
    mounts: Mutex<Option<(Rootfs, Held)>>,
}

/// What was made before a container's process.
#[derive(Debug)]
struct Ground {
    dir: PathBuf,
    fitted: spec::Fitted,
    rootfs: Rootfs,
    held: Held,
}

fn states() -> PathBuf {
    Path::new(GUEST_ROOT).join("states")
}

/// Where the container `id` keeps what is its own.
fn dir_of(id: &str) -> PathBuf {
    Path::new(GUEST_ROOT).join("containers").join(id)
}

impl Container {
    /// Makes a container whose process waits for its start. Where it fails nothing is left.
    pub(crate) async fn create(
        guest: &Arc<Guest>,
        request: CreateContainerRequest,
    ) -> Result<Self> {
        let id = request.container.clone();
        let made = Self::make(guest, request).await;
        if made.is_err() {
            let swept = id.clone();
            let swept = blocking(move || sweep(&swept)).await;
            if let Err(error) = swept {
                crate::console::error(&format!("clearing up container {id:?}: {error}"));
            }
        }
        made
    }

    async fn make(guest: &Arc<Guest>, request: CreateContainerRequest) -> Result<Self> {
        let id = request.container.clone();
        let stdio = request.stdio.clone().unwrap_or_default();
        let process = Process::planned(format!("container {id:?}"), &stdio)?;
        let pid_namespace = match request.shared_pid {
            true => guest.pod_pid_namespace()?,
            false => None,
        };
        let ground = {
            let guest = guest.clone();
            let terminal = stdio.terminal;
            blocking(move || prepare(&guest, &request, pid_namespace, terminal)).await?
        };
        let process = Arc::new(process);
        let job = Job {
            program: PathBuf::from(PROGRAM),
            arguments: [
                "create".into(),
                id.clone(),
                states().display().to_string(),
                ground.dir.display().to_string(),
            ]
            .into(),
            streams: process.begin()?,
            terminal: stdio.terminal,
        };
        let launched = launch(&guest.reaper, job).await?;
        let cgroup = Cgroup::of(&id);
        process.made(launched, cgroup.clone(), false)?;
        guest.made(&process);
        Ok(Self {
            id,
            dir: ground.dir,
            cgroup,
            init: process,
            execs: Mutex::default(),
            spec: ground.fitted.spec,
            mounts: Mutex::new(Some((ground.rootfs, ground.held))),
        })
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first process, or the exec with this id.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs().get(exec).cloned();
        found.ok_or_else(|| missing(format!("container {:?} has no exec {exec:?}", self.id)))
    }

    /// Lets its first process run.
    pub(crate) async fn start(&self) -> Result<u32> {
        let pid = self.init.may_start()?;
        let pid = pid.ok_or_else(|| refused(format!("container {:?} is not made", self.id)))?;
        let state = states().join(&self.id);
        blocking(move || {
            let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            let started = libcontainer::container::Container::load(state);
            started.and_then(|mut container| container.start()).doing(|| "starting".into())
        })
        .await?;
        self.init.started();
        Ok(pid)
    }

    /// Adds an exec.
    pub(crate) fn add_exec(&self, exec: &str, process: &[u8], stdio: &Stdio) -> Result<()> {
        if !self.init.is_running() {
            return Err(refused(format!("container {:?} is not running", self.id)));
        }
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            let text = format!("container {:?} has an exec {exec:?} already", self.id);
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        if execs.len() >= EXECS_MAX {
            let text = format!("container {:?} has {EXECS_MAX} execs; delete some", self.id);
            return Err(refused(text));
        }
        let (json, parsed) = spec::fit_exec(process, stdio.terminal)?;
        let dir = self.exec_dir(exec);
        let name = format!("exec {exec:?} of container {:?}", self.id);
        let planned = Process::planned(name, stdio)?;
        let written = self.write_exec(&dir, json, parsed.capabilities().clone());
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&dir);
            return Err(error);
        }
        execs.insert(exec.to_owned(), Arc::new(planned));
        Ok(())
    }

    fn exec_dir(&self, exec: &str) -> PathBuf {
        self.dir.join("execs").join(exec)
    }

    /// The exec's own state directory, so that libcontainer's leavings go with it.
    fn write_exec(
        &self,
        dir: &Path,
        mut process: Map<String, Value>,
        capabilities: Option<LinuxCapabilities>,
    ) -> Result<()> {
        let state = dir.join(&self.id);
        make_dir(&state)?;
        let model = states().join(&self.id).join("state.json");
        fs::copy(&model, state.join("state.json"))
            .doing(|| format!("copying {}", model.display()))?;
        let seccomp = self.spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        let mut late = json!({ "seccomp": seccomp, "capabilities": null });
        if seccomp.is_some() && process.get("noNewPrivileges") != Some(&Value::Bool(true)) {
            let own = capabilities.unwrap_or_else(none);
            late["capabilities"] = json!(own);
            process.insert("capabilities".into(), json!(with_admin(own)));
        }
        for (file, json) in [("process.json", Value::Object(process)), (LATE, late)] {
            let path = dir.join(file);
            fs::write(&path, json.to_string()).doing(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Runs an exec.
    pub(crate) async fn start_exec(&self, guest: &Guest, exec: &str) -> Result<u32> {
        let process = self.process(exec)?;
        process.may_start()?;
        if self.cgroup.keyed("cgroup.events", "frozen") == Some(1) {
            // The process would freeze before it is there.
            return Err(refused(format!("container {:?} is paused", self.id)));
        }
        let dir = self.exec_dir(exec);
        let streams = process.begin()?;
        let job = Job {
            program: PathBuf::from(PROGRAM),
            arguments: [
                "exec".into(),
                self.id.clone(),
                dir.display().to_string(),
                dir.join("process.json").display().to_string(),
            ]
            .into(),
            streams,
            terminal: process.wants_terminal(),
        };
        let launched = launch(&guest.reaper, job).await.inspect_err(|_| process.gone())?;
        let pid = launched.pid;
        // Its sockets; the process itself needs nothing of it any more.
        let _ = fs::remove_dir_all(&dir);
        process.made(launched, self.cgroup.clone(), true)?;
        Ok(pid)
    }

    /// Forgets an exec that has ended or never ran. Fine when there is none.
    pub(crate) fn delete_exec(&self, exec: &str) -> Result<()> {
        let mut execs = self.execs();
        let Some(process) = execs.get(exec) else { return Ok(()) };
        if !process.may_be_deleted() {
            return Err(refused(format!("exec {exec:?} of container {:?} runs", self.id)));
        }
        process.gone();
        execs.remove(exec);
        let _ = fs::remove_dir_all(self.exec_dir(exec));
        Ok(())
    }

    /// Its processes, each with the exec it was started by.
    pub(crate) fn pids(&self) -> Result<Vec<(u32, String)>> {
        let execs: HashMap<u32, String> = {
            let execs = self.execs();
            let known = execs.iter().filter_map(|(id, process)| Some((process.pid()?, id.clone())));
            known.collect()
        };
        let pids = self.cgroup.pids()?.into_iter();
        Ok(pids.map(|pid| (pid, execs.get(&pid).cloned().unwrap_or_default())).collect())
    }

    /// Ends what is left of it and gives back what it holds. Whatever fails can be tried again.
    pub(crate) async fn delete(&self) -> Result<()> {
        let group = self.cgroup.clone();
        blocking(move || group.remove()).await?;
        let processes: Vec<_> = self.execs().values().cloned().collect();
        for process in processes.iter().chain([&self.init]).filter(|p| !p.may_be_deleted()) {
            let ended = tokio::time::timeout(PATIENCE, process.wait()).await;
            if ended.is_err() {
                let waited = PATIENCE.as_secs();
                return Err(late(format!(
                    "a process of container {:?} is not gone {waited} s after it was killed",
                    self.id
                )));
            }
        }
        processes.iter().for_each(|process| process.gone());
        self.execs().clear();
        let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let id = self.id.clone();
        blocking(move || {
            drop(mounts);
            sweep(&id)
        })
        .await
    }
}

/// Everything before the process. Blocks.
fn prepare(
    guest: &Arc<Guest>,
    request: &CreateContainerRequest,
    pid_namespace: Option<String>,
    terminal: bool,
) -> Result<Ground> {
    let id = &request.container;
    let dir = dir_of(id);
    make_dir(&dir)?;
    let held = guest.storages.hold(&request.storages)?;
    let wanted = request.rootfs.as_ref().ok_or_else(|| invalid("rootfs is missing"))?;
    let rootfs = Rootfs::prepare(&dir, wanted)?;
    let disks = request.devices.iter().map(device).collect::<Result<Vec<_>>>()?;
    let (nodes, disks): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
    let cgroup = Cgroup::spec_path(id);
    let place =
        spec::Place { rootfs: &rootfs.path, cgroup, pid_namespace, terminal, devices: nodes };
    let fitted = spec::fit(&request.spec, &place)?;
    for (key, value) in &fitted.sysctls {
        sysctl(key, value)?;
    }
    make_cwd(&rootfs.path, &fitted.spec);
    let config = dir.join("config.json");
    fs::write(&config, &fitted.json).doing(|| format!("writing {}", config.display()))?;
    let group = Cgroup::of(id);
    group.create()?;
    group.write(&limits::writes(&fitted.resources)?)?;
    let allowed = fitted.resources.devices().as_deref().unwrap_or_default();
    group.confine(&devices::rules(allowed, &disks)?)?;
    make_dir(&states())?;
    Ok(Ground { dir, fitted, rootfs, held })
}

/// What a container that could not be made, or is deleted, may have left.
fn sweep(id: &str) -> Result<()> {
    let group = Cgroup::of(id).remove();
    for dir in [dir_of(id), states().join(id)] {
        match fs::remove_dir_all(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(|| format!("removing {}", dir.display())),
        }
    }
    group
}

/// A disk's node, as `linux.devices` has it, and its use.
fn device(wanted: &BlockDevice) -> Result<(Value, devices::Rule)> {
    if !wanted.path.starts_with("/dev/") {
        return Err(invalid(format!("device path {:?} is not below /dev", wanted.path)));
    }
    let found = disk::find(&wanted.serial)?;
    let node = json!({
        "path": wanted.path, "type": "b", "major": found.major, "minor": found.minor,
        "fileMode": wanted.mode & 0o777, "uid": wanted.uid, "gid": wanted.gid,
    });
    Ok((node, devices::Rule::disk(found.major, found.minor, wanted.read_only)))
}

/// Other engines make a working directory that the image lacks. Where it cannot be made,
/// libcontainer says so when it goes there.
fn make_cwd(rootfs: &Path, spec: &Spec) {
    let Some(process) = spec.process() else { return };
    if let Ok(root) = pathrs::Root::open(rootfs) {
        if root.resolve(process.cwd()).is_err() {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            let _ = root.mkdir_all(process.cwd(), &mode);
        }
    }
}

fn none() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    let sets = Some(std::collections::HashSet::new());
    none.set_bounding(sets.clone()).set_effective(sets.clone()).set_permitted(sets.clone());
    none.set_inheritable(sets.clone()).set_ambient(sets);
    none
}

/// `own` with what the kernel wants of a process that loads a seccomp filter.
fn with_admin(mut own: LinuxCapabilities) -> LinuxCapabilities {
    let add = |set: &Option<std::collections::HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(Capability::SysAdmin);
        Some(set)
    };
    let (effective, permitted) = (add(own.effective()), add(own.permitted()));
    own.set_effective(effective).set_permitted(permitted);
    own
}

/// Runs what blocks where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "working".into())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_force_gets_more() {
        let own = none();
        let more = with_admin(own.clone());
        assert!(more.effective().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(more.permitted().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert_eq!(more.bounding(), own.bounding());
        assert_eq!(more.inheritable(), own.inheritable());
    }

    #[test]
    fn a_device_node_stays_below_dev() {
        let wanted = BlockDevice { path: "/etc/passwd".into(), ..BlockDevice::default() };
        let error = device(&wanted).unwrap_err().to_string();
        assert_eq!(error, "device path \"/etc/passwd\" is not below /dev");
    }
}
