//! The real host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::lend::{self, Lent};
use super::loopback::Loop;
use super::mark::raw;
use super::namespace::Namespace;
use super::reaper::Reaper;
use super::{
    Bind, Child, Command, ExitWatch, Host, HostError, Loan, MountError, Output, bind, mount,
    namespace, spawn,
};
use crate::request::RootfsMount;

/// How much of a stream [`Host::run`] keeps.
const CAPTURE: usize = 64 * 1024;

/// Children belong to the process, so all its hosts share one table of them.
static REAPER: OnceLock<Reaper> = OnceLock::new();

/// Starts real processes and makes real mounts.
///
/// The process that holds it is the reaper of its orphans, and collects every child's exit:
/// nothing else in it may wait for children.
#[derive(Debug)]
pub struct RealHost {
    reaper: &'static Reaper,
    reaping: Arc<Reaping>,
    /// Where its mounts are and its programs run, if not where this process does.
    namespace: Option<Namespace>,
    /// The devices that were made for what it has lent, and where that is.
    devices: Mutex<Vec<(PathBuf, Loop)>>,
}

/// The task that collects exits; it ends with the last host.
#[derive(Debug)]
struct Reaping(JoinHandle<()>);

impl RealHost {
    /// Makes this process a child subreaper and starts to collect exits.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the role or the signal handler.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime with its I/O driver on.
    pub fn new() -> Result<Self, HostError> {
        prctl::set_child_subreaper(true).map_err(|e| HostError::Subreaper(e.into()))?;
        let mut ended = signal(SignalKind::child()).map_err(HostError::Subreaper)?;
        let reaper = REAPER.get_or_init(Reaper::default);
        let task = tokio::spawn(async move {
            while ended.recv().await.is_some() {
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

    fn devices(&self) -> MutexGuard<'_, Vec<(PathBuf, Loop)>> {
        // Every change is one call.
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let both = async {
            tokio::join!(read(&stdout, &mut out, &child.exit), read(&stderr, &mut err, &child.exit))
        };
        match tokio::time::timeout(deadline, both).await {
            Ok((first, second)) => {
                first.and(second).map_err(unread)?;
                Ok(Output { exit: child.exit.wait().await, stdout: out, stderr: err })
            }
            Err(_) => {
                // It may have ended in this very moment; then there is nothing to kill.
                let _ = kill(raw(child.pid), Signal::SIGKILL);
                child.exit.wait().await;
                Err(HostError::Deadline { command: summary, seconds: deadline.as_secs() })
            }
        }
    }

    fn spawn(&self, mut command: Command) -> Result<Child, HostError> {
        let program = command.program.display().to_string();
        log::debug!("run {program} {}", command.arguments().join(" "));
        if let Some(namespace) = &self.namespace {
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
        // What it is made of may lie where the namespace does not reach.
        namespace::detached(|point| mount::mount(mount, point).map(|()| point.to_owned()))
            .and_then(|made| match made {
                Ok(tree) => namespace.within(|| bind::attach(&tree, target)).map(Ok),
                Err(error) => Ok(Err(error)),
            })
            .unwrap_or_else(|error| Err(mount::refused(mount, target, error)))
            .map_err(|error| error.at(target))
    }

    fn bind(&self, source: &Path, target: &Path, how: Bind) -> Result<(), MountError> {
        let Some(namespace) = &self.namespace else { return bind::bind(source, target, how) };
        bind::copy(source, how)
            .and_then(|tree| namespace.within(|| bind::attach(&tree, target)))
            .map_err(|error| bind::refused(source, target, error))
    }

    fn lend(&self, source: &Path, target: &Path, to: Loan) -> Result<(), MountError> {
        let Lent { tree, device } = lend::owned(source, to)?;
        match &self.namespace {
            Some(namespace) => namespace.within(|| bind::attach(&tree, target)),
            None => bind::attach(&tree, target),
        }
        .map_err(|error| bind::refused(source, target, error))?;
        self.devices().extend(device.map(|device| (target.to_owned(), device)));
        Ok(())
    }

    fn unmount_all(&self, target: &Path) -> Result<(), MountError> {
        self.devices().retain(|(point, _)| !point.starts_with(target));
        let Some(namespace) = &self.namespace else { return mount::unmount_all(target) };
        namespace
            .within(|| Ok(mount::unmount_all(target)))
            .unwrap_or_else(|source| Err(MountError::Unmount { target: target.to_owned(), source }))
    }

    fn apart(&self, keep: &[PathBuf]) -> Result<Arc<dyn Host>, HostError> {
        let namespace = Namespace::new(keep).map_err(HostError::Apart)?;
        let reaping = Arc::clone(&self.reaping);
        let (namespace, devices) = (Some(namespace), Mutex::default());
        Ok(Arc::new(Self { reaper: self.reaper, reaping, namespace, devices }))
    }
}

/// Puts a pipe in a stream's empty place and gives its reading end.
fn capture(stream: &mut Option<OwnedFd>) -> io::Result<Option<pipe::Receiver>> {
    if stream.is_some() {
        return Ok(None);
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    *stream = Some(writer);
    pipe::Receiver::from_owned_fd(reader).map(Some)
}

/// Reads until end-of-file, or until the process has ended and the pipe is empty: what it left
/// running may hold the other end for ever. Keeps the last [`CAPTURE`] bytes.
async fn read(
    stream: &Option<pipe::Receiver>,
    kept: &mut Vec<u8>,
    exit: &ExitWatch,
) -> io::Result<()> {
    let Some(stream) = stream else {
        exit.wait().await;
        return Ok(());
    };
    let mut ended = false;
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
            Err(Errno::EAGAIN) if ended => return Ok(()),
            Err(Errno::EAGAIN) => {
                let again = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                // Nothing to read: clears the cached readiness, so that the next wait is real.
                let _ = stream.try_io(again);
                tokio::select! {
                    ready = stream.readable() => ready?,
                    _ = exit.wait() => ended = true,
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Paths, can_confine};
    use super::*;
    use crate::host::Resource;
    use crate::mounts::MountTable;

    fn sh(script: &str) -> Command {
        Command::new("/bin/sh").arg("-c").arg(script)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn runs_bounds_and_adopts() {
        let host = RealHost::new().unwrap();
        let output = host.run(sh("echo out; echo err >&2; exit 7"), SOON).await.unwrap();
        assert_eq!(
            (output.exit.status, output.stdout, output.stderr),
            (7, b"out\n".into(), b"err\n".into())
        );

        let late = host.run(sh("sleep 100"), Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(late.kind_of_deadline(), Some("sh sleep 100"));

        // The grandchild is adopted; its exit is kept until somebody asks.
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
    async fn gives_fds_by_number_and_keeps_the_end_of_long_output() {
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
    async fn a_process_without_privileges_has_no_capability() {
        let host = RealHost::new().unwrap();
        let command = sh("grep -E '^(Cap|NoNewPrivs)' /proc/self/status; ulimit -c")
            .without_privileges()
            .limit(Resource::RLIMIT_CORE, 0);
        let output = host.run(command, SOON).await;
        if !nix::unistd::geteuid().is_root() {
            // Without CAP_SETPCAP nothing can be taken, so nothing may run.
            assert!(output.is_err());
            return;
        }
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let values: Vec<&str> = text.split_whitespace().collect();
        let none = "0000000000000000";
        assert_eq!(values.iter().filter(|value| **value == none).count(), 5, "{text}");
        assert_eq!(&values[values.len() - 3..], ["NoNewPrivs:", "1", "0"], "{text}");
    }

    #[tokio::test]
    async fn a_confined_process_reaches_what_it_is_left_and_no_more() {
        if !can_confine() {
            println!("skipped: this kernel has no Landlock");
            return;
        }
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
    async fn a_network_namespace_is_entered_or_nothing_runs() {
        let host = RealHost::new().unwrap();
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        // A file that is no network namespace.
        let refused = host.spawn(sh("exit 0").netns(open("/dev/null"))).unwrap_err();
        assert_eq!(refused.to_string(), "cannot run /bin/sh");
        let wrong = host.spawn(sh("exit 0").netns(open("/proc/self/ns/uts")));
        assert!(wrong.is_err());
        if nix::unistd::geteuid().is_root() {
            let same = sh("readlink /proc/self/ns/net").netns(open("/proc/self/ns/net"));
            let output = host.run(same, SOON).await.unwrap();
            let own = std::fs::read_link("/proc/self/ns/net").unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), own.to_str().unwrap());
        }
    }

    const PRIVATE: Bind = Bind {
        recursive: true,
        read_only: crate::host::ReadOnly::No,
        propagation: crate::host::Propagation::Private,
    };

    #[tokio::test]
    async fn a_host_apart_mounts_where_nobody_sees_it() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let host = RealHost::new().unwrap();
        // A mount of the host's that the namespace does not get.
        let dir = tempfile::tempdir().unwrap();
        let [kept, other, machine] = ["kept", "other", "machine"].map(|n| dir.path().join(n));
        for path in [&kept, &other, &machine, &machine.join("point"), &machine.join("layers")] {
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
        let apart = host.apart(&keep).unwrap();
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
        let (point, layers) = (machine.join("point"), machine.join("layers"));
        apart.bind(&other, &point, PRIVATE).unwrap();
        apart.mount(&overlay, &layers).unwrap();
        assert_eq!(on_host(), before, "the host sees the mounts");

        let look = sh("pwd; cat kept/f machine/point/lower/f machine/layers/f; ls other | wc -l; \
            echo new > machine/layers/g");
        let output = apart.run(look.cwd(dir.path()), SOON).await.unwrap();
        let (here, error) = (dir.path().display(), String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, format!("{here}\nnearfarfar0\n"), "{error}");
        assert_eq!(std::fs::read_to_string(other.join("upper/g")).unwrap(), "new\n");
        assert!(std::fs::read_dir(&point).unwrap().next().is_none());

        let missing = apart.mount(&tmpfs(&["no=such"]), &point).unwrap_err().to_string();
        assert_eq!(missing, format!("mounting tmpfs tmpfs on {}", point.display()));
        // What the host unmounts is gone: the namespace has no copy of it.
        apart.unmount_all(&machine).unwrap();
        let output = apart.run(sh("ls machine/point").cwd(dir.path()), SOON).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        host.unmount_all(dir.path()).unwrap();
        std::fs::remove_dir(&other).unwrap();
    }
}
