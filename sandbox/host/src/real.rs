//! [`Host`] on the machine itself.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::pipe2;
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::bind::Bind;
use crate::command::{Command, Output};
use crate::host::Host;
use crate::host_error::HostError;
use crate::loopback::Loop;
use crate::mount::RootfsMount;
use crate::mount_error::MountError;
use crate::namespace::Namespace;
use crate::owned::Detached;
use crate::owned::OwnedBind;
use crate::process_ref::raw;
use crate::reaper::Reaper;
use crate::reaper::{Child, ExitWatch};
use crate::{bind, mount, namespace, owned, spawn};

/// How many bytes of a stream [`Host::run`] keeps.
const CAPTURE: usize = 64 * 1024;

/// Children belong to the process, so all its hosts share one table.
static REAPER: OnceLock<Reaper> = OnceLock::new();

/// Starts real processes and makes real mounts.
///
/// It makes this process a child subreaper and collects the exit of every child: nothing else in
/// the process may wait for children.
#[derive(Debug)]
pub struct RealHost {
    reaper: &'static Reaper,
    reaping: Arc<Reaping>,
    /// The mount namespace of its mounts and programs, if not this process's.
    namespace: Option<Namespace>,
    /// Loop devices of [`Host::bind_owned`], with their mount points.
    devices: Mutex<Vec<(PathBuf, Loop)>>,
}

/// The task that collects exits; aborted with the last host.
#[derive(Debug)]
struct Reaping(JoinHandle<()>);

impl RealHost {
    /// Makes this process a child subreaper and starts collecting exits.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the subreaper role or the signal handler.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime with its I/O driver enabled.
    pub fn new() -> Result<Self, HostError> {
        prctl::set_child_subreaper(true).map_err(|e| HostError::Subreaper(e.into()))?;
        let mut exits = signal(SignalKind::child()).map_err(HostError::Subreaper)?;
        let reaper = REAPER.get_or_init(Reaper::default);
        let task = tokio::spawn(async move {
            while exits.recv().await.is_some() {
                reaper.reap();
            }
        });
        Ok(Self {
            reaper,
            reaping: Arc::new(Reaping(task)),
            namespace: None,
            devices: Mutex::default(),
        })
    }
}

impl Drop for Reaping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait]
impl Host for RealHost {
    async fn run(&self, mut command: Command, deadline: Duration) -> Result<Output, HostError> {
        let program = command.program.display().to_string();
        let summary = command.summary();
        let unread = |source| HostError::Output { program: program.clone(), source };
        let stdout = capture(&mut command.stdio[1]).map_err(unread)?;
        let stderr = capture(&mut command.stdio[2]).map_err(unread)?;
        let child = self.spawn(command)?;
        let mut out = Vec::new();
        let mut err = Vec::new();
        let both = async {
            tokio::join!(read(&stdout, &mut out, &child.exit), read(&stderr, &mut err, &child.exit))
        };
        match tokio::time::timeout(deadline, both).await {
            Ok((first, second)) => {
                first.and(second).map_err(unread)?;
                Ok(Output { exit: child.exit.wait().await, stdout: out, stderr: err })
            }
            Err(_) => {
                // Fails if it has exited in the meantime, which is as good.
                let _ = kill(raw(child.pid), Signal::SIGKILL);
                child.exit.wait().await;
                Err(HostError::Deadline { command: summary, seconds: deadline.as_secs() })
            }
        }
    }

    fn spawn(&self, mut command: Command) -> Result<Child, HostError> {
        let program = command.program.display().to_string();
        tracing::debug!(%program, arguments = %command.arguments().join(" "), "starting a program");
        if let Some(namespace) = self.namespace.as_ref().filter(|_| !command.in_own_mounts) {
            let handle = namespace.handle();
            command.mounts = Some(
                handle.map_err(|source| HostError::Spawn { program: program.clone(), source })?,
            );
        }
        self.reaper
            .adopt(|| spawn::spawn(command))
            .map_err(|source| HostError::Spawn { program, source })
    }

    fn watch(&self, pid: u32) -> Result<ExitWatch, HostError> {
        self.reaper.watch(pid)
    }

    fn mount(&self, mount: &RootfsMount, target: &Path) -> Result<(), MountError> {
        let Some(namespace) = &self.namespace else { return mount::mount(mount, target) };
        // Its sources, such as layers, need not be visible in the namespace.
        namespace::detached(|point| mount::mount(mount, point).map(|()| point.to_owned()))
            .and_then(|made| match made {
                Ok(tree) => namespace.within(|| bind::attach(&tree, target)).map(Ok),
                Err(error) => Ok(Err(error)),
            })
            .unwrap_or_else(|error| Err(mount::failed(mount, target, error)))
            .map_err(|error| error.at(target))
    }

    fn bind(&self, source: &Path, target: &Path, how: Bind) -> Result<(), MountError> {
        let Some(namespace) = &self.namespace else { return bind::bind(source, target, how) };
        bind::copy(source, how)
            .and_then(|tree| namespace.within(|| bind::attach(&tree, target)))
            .map_err(|error| bind::failed(source, target, error))
    }

    fn bind_owned(&self, source: &Path, target: &Path, how: OwnedBind) -> Result<(), MountError> {
        let Detached { tree, device } = owned::detached(source, how)?;
        match &self.namespace {
            Some(namespace) => namespace.within(|| bind::attach(&tree, target)),
            None => bind::attach(&tree, target),
        }
        .map_err(|error| bind::failed(source, target, error))?;
        self.devices.lock().extend(device.map(|device| (target.to_owned(), device)));
        Ok(())
    }

    fn unmount_all(&self, target: &Path) -> Result<(), MountError> {
        self.devices.lock().retain(|(point, _)| !point.starts_with(target));
        let Some(namespace) = &self.namespace else { return mount::unmount_all(target) };
        namespace
            .within(|| Ok(mount::unmount_all(target)))
            .unwrap_or_else(|source| Err(MountError::Unmount { target: target.to_owned(), source }))
    }

    fn with_private_mounts(&self, keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError> {
        let namespace = Namespace::new(keep).map_err(HostError::Namespace)?;
        Ok(Arc::new(Self {
            reaper: self.reaper,
            reaping: Arc::clone(&self.reaping),
            namespace: Some(namespace),
            devices: Mutex::default(),
        }))
    }
}

/// Redirects a stream that is not set into a pipe and returns the pipe's reading end.
fn capture(stream: &mut Option<OwnedFd>) -> io::Result<Option<pipe::Receiver>> {
    if stream.is_some() {
        return Ok(None);
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    *stream = Some(writer);
    pipe::Receiver::from_owned_fd(reader).map(Some)
}

/// Reads until end-of-file, or until the process has exited and the pipe is empty: a daemon that
/// it started may keep the other end open. Keeps the last [`CAPTURE`] bytes.
async fn read(
    stream: &Option<pipe::Receiver>,
    kept: &mut Vec<u8>,
    exit: &ExitWatch,
) -> io::Result<()> {
    let Some(stream) = stream else {
        exit.wait().await;
        return Ok(());
    };
    let mut exited = false;
    let mut chunk = [0; 4096];
    loop {
        // Read past tokio's readiness cache, which may lag behind the exit.
        match nix::unistd::read(stream, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                kept.extend_from_slice(&chunk[..read]);
                if kept.len() > 2 * CAPTURE {
                    kept.drain(..kept.len() - CAPTURE);
                }
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if exited => return Ok(()),
            Err(Errno::EAGAIN) => {
                let again = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                // Clears the cached readiness, so that the next `readable` waits.
                let _ = stream.try_io(again);
                tokio::select! {
                    ready = stream.readable() => ready?,
                    _ = exit.wait() => exited = true,
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Resource;
    use crate::confine::{Paths, can_confine};
    use crate::mounts::MountTable;

    fn sh(script: &str) -> Command {
        Command::new("/bin/sh").arg("-c").arg(script)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn runs_bounds_and_adopts() {
        let host = RealHost::new().unwrap();
        let output = host.run(sh("echo out; echo err >&2; exit 7"), SOON).await.unwrap();
        assert_eq!(output.exit.status, 7);
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.stderr, b"err\n");

        let late = host.run(sh("sleep 100"), Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(late.kind_of_deadline(), Some("sh sleep 100"));

        // The grandchild is adopted; its exit is kept for a later watcher.
        let output = host.run(sh("(sleep 0.1; exit 3) & echo $!"), SOON).await.unwrap();
        let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(host.watch(pid).unwrap().wait().await.status, 3);

        let output = host.run(sh("exit 5 & echo $!; wait $!; sleep 0.1"), SOON).await.unwrap();
        assert!(output.success());

        let missing = host.spawn(Command::new("/no/such/program")).unwrap_err();
        assert_eq!(missing.to_string(), "cannot run /no/such/program");
    }

    impl HostError {
        fn kind_of_deadline(&self) -> Option<&str> {
            match self {
                Self::Deadline { command, .. } => Some(command),
                _ => None,
            }
        }
    }

    #[tokio::test]
    async fn passes_fds_by_number_and_keeps_the_last_part_of_long_output() {
        let host = RealHost::new().unwrap();
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let command = sh("echo hello >&5; yes | head -c 300000; echo end").fd(5, writer);
        let output = host.run(command, SOON).await.unwrap();
        assert!(output.stdout.len() <= 2 * CAPTURE + 4096 && output.stdout.ends_with(b"end\n"));
        let mut text = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(reader), &mut text).unwrap();
        assert_eq!(text, "hello\n");
    }

    #[tokio::test]
    async fn environment_is_clean() {
        let host = RealHost::new().unwrap();
        let command = Command::new("/usr/bin/env").env("A", "b");
        let output = String::from_utf8(host.run(command, SOON).await.unwrap().stdout).unwrap();
        let names: Vec<&str> = output.lines().filter_map(|l| l.split('=').next()).collect();
        assert_eq!(names, ["A", "PATH"]);
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn a_process_without_privileges_has_no_capability() {
        let host = RealHost::new().unwrap();
        let command = sh("grep -E '^(Cap|NoNewPrivs)' /proc/self/status; ulimit -c")
            .without_privileges()
            .limit(Resource::RLIMIT_CORE, 0);
        let output = host.run(command, SOON).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let values: Vec<&str> = text.split_whitespace().collect();
        let none = "0000000000000000";
        assert_eq!(values.iter().filter(|value| **value == none).count(), 5, "{text}");
        assert_eq!(&values[values.len() - 3..], ["NoNewPrivs:", "1", "0"], "{text}");
    }

    #[tokio::test]
    #[ignore = "needs root, landlock"]
    async fn a_confined_process_reaches_its_paths_and_no_others() {
        assert!(can_confine());
        let host = RealHost::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["own", "other", "files"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("f"), name).unwrap();
        }
        let system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"].map(PathBuf::from);
        let write = vec![dir.path().join("own"), "/not/there".into(), "/dev/null".into()];
        let files = vec![dir.path().join("files")];
        let paths = Paths { read: system.into(), files, write };
        let script = "cat own/f; echo new > own/g; cat other/f 2>/dev/null || echo :refused; \
            (echo x > other/f) 2>/dev/null || echo :refused; cat files/f; echo y > files/f; \
            (echo z > files/g) 2>/dev/null || echo :refused";
        let command = sh(script).cwd(dir.path()).confined(paths).without_privileges();
        let output = host.run(command, SOON).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "own:refused\n:refused\nfiles:refused\n"
        );
        assert_eq!(std::fs::read_to_string(dir.path().join("files/f")).unwrap(), "y\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("own/g")).unwrap(), "new\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("other/f")).unwrap(), "other");
    }

    #[tokio::test]
    async fn nothing_runs_if_the_network_namespace_cannot_be_entered() {
        let host = RealHost::new().unwrap();
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        // Not a network namespace.
        let error = host.spawn(sh("exit 0").netns(open("/dev/null"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot run /bin/sh");
        let wrong = host.spawn(sh("exit 0").netns(open("/proc/self/ns/uts")));
        assert!(wrong.is_err());
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn a_network_namespace_is_entered() {
        let host = RealHost::new().unwrap();
        let own = std::fs::File::open("/proc/self/ns/net").unwrap();
        let same = sh("readlink /proc/self/ns/net").netns(own.into());
        let output = host.run(same, SOON).await.unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), own.to_str().unwrap());
    }

    const PRIVATE: Bind = Bind {
        recursive: true,
        read_only: crate::bind::ReadOnly::No,
        propagation: crate::bind::Propagation::Private,
    };

    #[tokio::test]
    #[ignore = "needs mount"]
    async fn private_mounts_are_not_visible_on_the_host() {
        let host = RealHost::new().unwrap();
        // `other` is a mount of the host that the namespace does not get.
        let dir = tempfile::tempdir().unwrap();
        let [kept, other, vm] = ["kept", "other", "vm"].map(|n| dir.path().join(n));
        for path in [&kept, &other, &vm, &vm.join("point"), &vm.join("layers")] {
            std::fs::create_dir(path).unwrap();
        }
        let tmpfs = |options: &[&str]| RootfsMount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            options: options.iter().map(ToString::to_string).collect(),
        };
        host.mount(&tmpfs(&[]), &kept).unwrap();
        host.mount(&tmpfs(&[]), &other).unwrap();
        for layer in ["upper", "lower", "work"] {
            std::fs::create_dir(other.join(layer)).unwrap();
        }
        std::fs::write(other.join("lower/f"), "far").unwrap();
        std::fs::write(kept.join("f"), "near").unwrap();

        let keep = [kept.join("below"), "/dev/null".into(), "/usr".into()];
        let pod = host.with_private_mounts(&keep).unwrap();
        let on_host = || {
            let table = MountTable::current().unwrap();
            let points = table.below(dir.path()).map(|mount| mount.point.into_owned());
            points.collect::<Vec<_>>()
        };
        let before = on_host();
        let line = |layer: &str| format!("{layer}dir={}", other.join(layer).display());
        let overlay = RootfsMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: ["lower", "upper", "work"].map(line).into(),
        };
        let point = vm.join("point");
        let layers = vm.join("layers");
        pod.bind(&other, &point, PRIVATE).unwrap();
        pod.mount(&overlay, &layers).unwrap();
        assert_eq!(on_host(), before, "mounts are visible on the host");

        let look = sh("pwd; cat kept/f vm/point/lower/f vm/layers/f; ls other | wc -l; \
            echo new > vm/layers/g");
        let output = pod.run(look.cwd(dir.path()), SOON).await.unwrap();
        let here = dir.path().display();
        let error = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, format!("{here}\nnearfarfar0\n"), "{error}");
        assert_eq!(std::fs::read_to_string(other.join("upper/g")).unwrap(), "new\n");
        assert!(std::fs::read_dir(&point).unwrap().next().is_none());

        let missing = pod.mount(&tmpfs(&["no=such"]), &point).unwrap_err().to_string();
        assert_eq!(missing, format!("mounting tmpfs tmpfs on {}", point.display()));
        // The namespace has no copy of `other`, which the host can unmount and remove.
        pod.unmount_all(&vm).unwrap();
        let output = pod.run(sh("ls vm/point").cwd(dir.path()), SOON).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        host.unmount_all(dir.path()).unwrap();
        std::fs::remove_dir(&other).unwrap();
    }
}
