//! Real sandboxes in a directory of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox_core::{
    Backend, Bundle, Container, CreateContainer, Created, Ended, ExecProcess, Exit, Id,
    LaunchSandbox, Launched, Prepared, Process, Result, Sandbox, StdioPaths,
};
use sandbox_gvisor::{GvisorBackend, GvisorConfig, Network};
use sandbox_host::RealHost;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest any step may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Where Debian puts busybox; `BULKHEAD_BUSYBOX` names another.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const APPLETS: [&str; 22] = [
    "sh", "sleep", "echo", "cat", "ls", "true", "false", "id", "env", "stty", "kill", "head",
    "touch", "pwd", "trap", "ip", "wc", "dd", "grep", "mount", "test", "yes",
];

/// Tests with a sandbox run one at a time: they share the host's two or three cores.
static SERIAL: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub(crate) struct Bed {
    pub(crate) dir: TempDir,
    pub(crate) host: Arc<RealHost>,
    pub(crate) config: GvisorConfig,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

fn busybox() -> PathBuf {
    let given = std::env::var_os("BULKHEAD_BUSYBOX").map(PathBuf::from);
    let known = BUSYBOX.iter().map(PathBuf::from);
    let found = given.into_iter().chain(known).find(|path| path.exists());
    found
        .expect("no busybox for a root file system: install busybox-static or set BULKHEAD_BUSYBOX")
}

impl Bed {
    /// A bed with the runsc that `BULKHEAD_RUNSC` names.
    pub(crate) async fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "runsc needs root");
        let runsc = std::env::var_os("BULKHEAD_RUNSC").expect("BULKHEAD_RUNSC names no runsc");
        let runsc = PathBuf::from(runsc);
        let alone = SERIAL.lock().await;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = GvisorConfig {
            runsc,
            root: dir.path().join("r"),
            network: Network::None,
            ..GvisorConfig::default()
        };
        let host = Arc::new(RealHost::new().unwrap());
        Self { dir, host, config, _alone: alone }
    }

    pub(crate) fn backend(&self) -> GvisorBackend {
        assert_eq!(self.config.faults(), []);
        GvisorBackend::new(self.config.clone(), Id::new("test").unwrap(), self.host.clone())
    }

    /// Launches a sandbox with `request`, a workload.
    pub(crate) async fn launch(
        &self,
        request: CreateContainer,
    ) -> Result<(Arc<dyn Sandbox>, Task)> {
        let request = LaunchSandbox::with_container(request, false);
        launched(&self.backend(), request).await
    }

    /// Launches a Pod's sandbox with `request` as its "pause" container, and starts it.
    pub(crate) async fn launch_pod(&self, request: CreateContainer) -> (Arc<dyn Sandbox>, Task) {
        let request = LaunchSandbox::with_container(request, true);
        let (sandbox, pause) = launched(&self.backend(), request).await.unwrap();
        pause.start().await;
        (sandbox, pause)
    }

    /// A configuration that runs `args`.
    pub(crate) fn spec(&self, args: &[&str]) -> Value {
        let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"],
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "root": {"path": "rootfs"},
            "hostname": "guest",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"},
            ]},
        })
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join(id)
    }

    /// A container to make of `spec`, with a root file system of its own.
    pub(crate) fn request(&self, id: &str, spec: &Value) -> CreateContainer {
        let bundle = self.bundle(id);
        let bin = bundle.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for dir in ["proc", "dev", "tmp", "etc"] {
            fs::create_dir_all(bundle.join("rootfs").join(dir)).unwrap();
        }
        fs::copy(busybox(), bin.join("busybox")).unwrap();
        for applet in APPLETS {
            let _ = std::os::unix::fs::symlink("busybox", bin.join(applet));
        }
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        CreateContainer {
            id: Id::new(id).unwrap(),
            bundle: Bundle::load(bundle).unwrap(),
            rootfs: vec![],
            stdio: StdioPaths::default(),
            checkpoint: None,
        }
    }

    /// A container that runs `script`.
    pub(crate) fn script(&self, id: &str, script: &str) -> CreateContainer {
        self.request(id, &self.spec(&["sh", "-c", script]))
    }

    /// A Pod with its "pause" container running.
    pub(crate) async fn pod(&self) -> (Arc<dyn Sandbox>, Task) {
        self.launch_pod(self.request("pod", &self.spec(&["sleep", "100000"]))).await
    }

    pub(crate) fn empty_fifo(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Streams whose standard output and error go to the file `name`.
    pub(crate) fn log(&self, name: &str) -> (StdioPaths, PathBuf) {
        let path = self.dir.path().join(name);
        let uri = format!("file://{}", path.display());
        let paths =
            StdioPaths { stdout: Some(uri.clone()), stderr: Some(uri), ..StdioPaths::default() };
        (paths, path)
    }

    /// Runs `args` in the container of `task`; how it exited and what it printed.
    pub(crate) async fn exec(&self, task: &Task, args: &[&str]) -> (Exit, String) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let id = format!("e{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (stdio, log) = self.log(&id);
        let exec = task.exec(self.exec_request(&id, args, stdio)).await.unwrap();
        exec.start(|| {}).await.unwrap();
        let exit = ended(&exec).await;
        (exit, fs::read_to_string(log).unwrap())
    }

    pub(crate) fn exec_request(&self, id: &str, args: &[&str], stdio: StdioPaths) -> ExecProcess {
        let spec = &self.spec(args)["process"];
        let spec = serde_json::from_value(spec.clone()).unwrap();
        ExecProcess { id: Id::new(id).unwrap(), spec, stdio }
    }

    /// Fails if anything of the sandboxes is left.
    pub(crate) fn assert_clean(&self) {
        let state = self.dir.path().join("r/test");
        let left: Vec<_> = fs::read_dir(&state).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "left in runsc's root: {left:?}");
        let root = self.dir.path().to_str().unwrap().to_owned();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            assert!(!line.contains(&root) || line.contains("real-"), "left running: {line}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&root), "left mounted");
        for bundle in fs::read_dir(self.dir.path()).unwrap().flatten() {
            let store = bundle.path().join("rootfs");
            let names = fs::read_dir(store).into_iter().flatten().flatten();
            let names: Vec<_> = names.map(|f| f.file_name().into_string().unwrap()).collect();
            assert!(!names.iter().any(|n| n.starts_with(".gvisor")), "left behind: {names:?}");
            assert!(!bundle.path().join("gvisor.json").exists(), "a record is left");
        }
    }
}

/// A container with its first process followed, as the shim follows it.
pub(crate) struct Task {
    pub(crate) container: Arc<dyn Container>,
    pub(crate) init: Arc<Process>,
    pub(crate) ended: Arc<Mutex<Option<Ended>>>,
    sandbox: Arc<dyn Sandbox>,
}

impl Task {
    fn of(created: Created, sandbox: &Arc<dyn Sandbox>) -> Self {
        let ended = Arc::<Mutex<Option<Ended>>>::default();
        let report = Arc::clone(&ended);
        let init = follow("the container", created.init, sandbox, move |seen| {
            *report.lock().unwrap() = Some(seen);
        });
        Self { container: created.container, init, ended, sandbox: Arc::clone(sandbox) }
    }

    pub(crate) async fn start(&self) {
        self.init.start(|| {}).await.unwrap();
    }

    pub(crate) async fn exec(&self, request: ExecProcess) -> Result<Arc<Process>> {
        let prepared = self.container.exec(request).await?;
        Ok(follow("the exec", prepared, &self.sandbox, |_| {}))
    }

    /// Deletes the container, whose first process has exited.
    pub(crate) async fn delete(&self) {
        self.init.delete().await.unwrap();
        self.container.delete().await.unwrap();
    }

    /// Whether its exit was reported with an out-of-memory kill.
    pub(crate) fn oom_killed(&self) -> bool {
        self.ended.lock().unwrap().unwrap().oom_killed
    }
}

fn follow(
    name: &str,
    prepared: Box<dyn Prepared>,
    sandbox: &Arc<dyn Sandbox>,
    report: impl FnOnce(Ended) + Send + 'static,
) -> Arc<Process> {
    let sandbox = Arc::clone(sandbox);
    let exited = async move { sandbox.exited().await };
    Process::follow(name.to_owned(), prepared, exited, async move |ended| report(ended))
}

async fn launched(
    backend: &GvisorBackend,
    request: LaunchSandbox,
) -> Result<(Arc<dyn Sandbox>, Task)> {
    let Launched { sandbox, first } = backend.launch(request).await?;
    let task = Task::of(first.unwrap(), &sandbox);
    Ok((sandbox, task))
}

/// Adds a container to the sandbox.
pub(crate) async fn join(sandbox: &Arc<dyn Sandbox>, request: CreateContainer) -> Result<Task> {
    Ok(Task::of(sandbox.create(request).await?, sandbox))
}

/// Adds a container to the sandbox and starts it.
pub(crate) async fn running(sandbox: &Arc<dyn Sandbox>, request: CreateContainer) -> Task {
    let task = join(sandbox, request).await.unwrap();
    task.start().await;
    task
}

/// Stops the sandbox, and deletes its containers.
pub(crate) async fn stop<const N: usize>(sandbox: &Arc<dyn Sandbox>, tasks: [&Task; N]) {
    sandbox.stop().await.unwrap();
    for task in tasks {
        task.delete().await;
    }
}

/// Waits for a process with a bound.
pub(crate) async fn ended(process: &Process) -> Exit {
    tokio::time::timeout(SOON, process.exited()).await.expect("the process does not exit")
}

/// Waits until `done` with a bound.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("no {what}"));
}
