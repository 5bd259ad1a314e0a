//! Calls of the runsc binary, each with a deadline.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::stdio::ProcessFds;
use sandbox_host::{Classified, Command, Host, HostError, Kind};

use crate::argv;
use crate::message::{self, RunscError};
use crate::probe::{self, Probe, ProbeError};
use crate::settings::{Network, Platform, Settings};
use crate::state;

/// Where binaries are looked for when `PATH` is not set.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Without it runsc's KVM platform hangs.
const KVM: &str = "/dev/kvm";

/// Why a call of runsc failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// runsc reported a failure.
    #[error(transparent)]
    Runsc(#[from] RunscError),
    /// runsc could not be started, or did not exit in time.
    #[error("calling runsc")]
    Host(#[from] HostError),
    /// runsc's state directory could not be made.
    #[error("preparing runsc's state directory {path}")]
    Root {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Classified for CallError {
    fn kind(&self) -> Kind {
        match self {
            Self::Runsc(error) => error.kind(),
            Self::Host(error) => error.kind(),
            Self::Root { .. } => Kind::Internal,
        }
    }
}

/// The runsc of a handler, for one containerd namespace.
#[derive(Debug, Clone)]
pub struct Runsc {
    binary: PathBuf,
    settings: Arc<Settings>,
    root: PathBuf,
    host: Arc<dyn Host>,
    network: Network,
    probe: Probe,
}

impl Runsc {
    /// Finds `program` (an absolute path, or a name to look up in `PATH`) and learns what it can
    /// do. `root` is the directory of its state; what was learned of a binary is kept in `cache`.
    pub async fn find(
        program: &Path,
        settings: Settings,
        root: PathBuf,
        cache: &Path,
        host: Arc<dyn Host>,
    ) -> Result<Self, ProbeError> {
        let path = std::env::var("PATH").unwrap_or_else(|_| PATH.to_owned());
        let binary = probe::find(program, &path)?;
        let probe = probe::ask(&binary, cache, &*host).await?;
        if let Some(flag) = probe.unknown_flag(settings.flags.keys()) {
            let version = probe.version.clone();
            let flag = flag.clone();
            return Err(ProbeError::UnknownFlag { path: binary, version, flag });
        }
        if settings.platform == Platform::Kvm && !Path::new(KVM).exists() {
            return Err(ProbeError::NoKvm);
        }
        let mask = if probe.mistakes_namespaces() { "; hiding /proc/sys/net from it" } else { "" };
        tracing::info!("runsc {} at {}{mask}", probe.version, binary.display());
        let network = settings.network;
        let settings = Arc::new(settings);
        Ok(Self { binary, settings, root, host, network, probe })
    }

    /// The same for a sandbox with another network than the handler's.
    pub fn with_network(&self, network: Network) -> Self {
        Self { network, ..self.clone() }
    }

    /// Where the sandbox's packets go.
    pub fn network(&self) -> Network {
        self.network
    }

    /// runsc's state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How long a killed sandbox may take to exit.
    pub fn delete_deadline(&self) -> Duration {
        self.settings.timeouts.delete()
    }

    /// Whether this build mistakes a Pod's network namespace for the host's, unless
    /// `/proc/sys/net` is hidden from it.
    pub fn mistakes_namespaces(&self) -> bool {
        self.probe.mistakes_namespaces()
    }

    /// Whether the sandbox may end with a panic when it forwards a port.
    pub fn panics_on_port_forward(&self) -> bool {
        self.probe.panics_on_port_forward()
    }

    /// Makes the state directory.
    pub fn prepare_root(&self) -> Result<(), CallError> {
        use std::os::unix::fs::DirBuilderExt;
        let create =
            |dir: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
        // Other parts share the directories above, a VMM's unprivileged user among them.
        let parents = self.root.parent().map_or(Ok(()), |parent| create(parent, 0o711));
        parents
            .and_then(|()| create(&self.root, 0o700))
            .map_err(|source| CallError::Root { path: self.root.clone(), source })
    }

    /// `create`. A container that launches its sandbox passes its streams here.
    pub async fn create(
        &self,
        id: &str,
        bundle: &Path,
        console: Option<&Path>,
        stdio: Option<ProcessFds>,
    ) -> Result<(), CallError> {
        let args = argv::create(id, bundle, &state::pid_file(bundle), console);
        let call = Call { verb: "create", args, bundle, deadline: self.settings.timeouts.create() };
        self.call(call, stdio, false).await
    }

    /// `start`, or `restore` from `image`. A container that joins a sandbox passes its streams
    /// here. `mask` hides `/proc/sys/net` from runsc.
    pub async fn start(
        &self,
        id: &str,
        bundle: &Path,
        image: Option<&Path>,
        stdio: Option<ProcessFds>,
        mask: bool,
    ) -> Result<(), CallError> {
        let (verb, args) = match image {
            None => ("start", argv::start(id)),
            Some(image) => ("restore", argv::restore(id, bundle, image)),
        };
        let call = Call { verb, args, bundle, deadline: self.settings.timeouts.start() };
        self.call(call, stdio, mask).await
    }

    /// `checkpoint`.
    pub async fn checkpoint(
        &self,
        id: &str,
        bundle: &Path,
        image: &Path,
        leave_running: bool,
    ) -> Result<(), CallError> {
        let args = argv::checkpoint(id, image, leave_running);
        let deadline = self.settings.timeouts.start();
        self.call(Call { verb: "checkpoint", args, bundle, deadline }, None, false).await
    }

    /// `delete --force`.
    pub async fn delete(&self, id: &str, bundle: &Path) -> Result<(), CallError> {
        let args = argv::delete(id, true);
        let deadline = self.settings.timeouts.delete();
        self.call(Call { verb: "delete", args, bundle, deadline }, None, false).await
    }

    async fn call(
        &self,
        call: Call<'_>,
        stdio: Option<ProcessFds>,
        mask: bool,
    ) -> Result<(), CallError> {
        // A log of its own: runsc appends, and no line names its call.
        let log = call.bundle.join(format!("runsc-{}.log", call.verb));
        let mut command = Command::new(&self.binary)
            .args(argv::globals(&self.settings, self.network, &self.root, &log))
            .args(call.args)
            .mask_proc_sys_net(mask);
        if let Some(fds) = stdio {
            command = command.stdin(fds.stdin).stdout(fds.stdout).stderr(fds.stderr);
        }
        let run = self.host.run(command, call.deadline).await;
        let report = fs::read(&log).unwrap_or_default();
        // runsc makes it only for its first line.
        let _ = fs::remove_file(&log);
        let output = run?;
        if output.success() {
            return Ok(());
        }
        let status = format!("status {}", output.exit.status);
        let words = [output.stderr, output.stdout].concat();
        Err(message::failure(call.verb, &status, &report, &words).into())
    }
}

/// One call.
struct Call<'a> {
    verb: &'static str,
    args: Vec<OsString>,
    bundle: &'a Path,
    deadline: Duration,
}

#[cfg(test)]
mod tests {
    use sandbox_host::{FakeHost, Scripted};

    use super::*;

    fn runsc(host: Arc<FakeHost>) -> Runsc {
        Runsc {
            binary: "/bin/runsc".into(),
            settings: Arc::new(Settings::example()),
            root: "/run/r".into(),
            host,
            network: Network::Sandbox,
            probe: Probe {
                version: "x".into(),
                date: None,
                subcommands: ["update".to_owned()].into(),
                flags: [].into(),
            },
        }
    }

    #[tokio::test]
    async fn calls_carry_the_same_flags_and_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(FakeHost::new([
            Scripted::Ends(0, vec![]),
            Scripted::Ends(0, vec![]),
            Scripted::Hangs,
        ]));
        let runsc = runsc(host.clone());
        runsc.create("c", dir.path(), None, None).await.unwrap();
        runsc.start("c", dir.path(), None, None, true).await.unwrap();
        let late = runsc.delete("c", dir.path()).await.unwrap_err();
        assert_eq!(late.kind(), Kind::DeadlineExceeded);
        let flags = |line: &[String]| {
            let own = |a: &&String| a.starts_with("--") && !a.starts_with("--log=");
            line.iter().filter(own).take(10).cloned().collect::<Vec<_>>()
        };
        let commands = host.commands();
        assert_eq!(flags(&commands[0]), flags(&commands[1]));
        assert_eq!(commands[1].last().unwrap(), "c");
    }

    #[tokio::test]
    async fn a_pod_on_the_hosts_network_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        let ends = || Scripted::Ends(0, vec![]);
        let host = Arc::new(FakeHost::new([ends(), ends(), ends()]));
        let runsc = runsc(host.clone());
        runsc.create("c", dir.path(), None, None).await.unwrap();
        let runsc = runsc.with_network(Network::Host);
        runsc.create("c", dir.path(), None, None).await.unwrap();
        runsc.start("c", dir.path(), None, None, false).await.unwrap();
        let network =
            |line: &Vec<String>| line.iter().find(|a| a.starts_with("--network")).cloned();
        let networks: Vec<_> = host.commands().iter().filter_map(network).collect();
        assert_eq!(networks, ["--network=sandbox", "--network=host", "--network=host"]);
    }

    #[tokio::test]
    async fn a_failure_is_read_from_the_log_of_its_call() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("runsc-start.log");
        fs::write(&log, r#"{"level":"error","msg":"loading container: file does not exist"}"#)
            .unwrap();
        let runsc = runsc(Arc::new(FakeHost::new([Scripted::Ends(128, vec![])])));
        let error = runsc.start("c", dir.path(), None, None, false).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.to_string(), "runsc start: loading container: file does not exist");
        assert!(!log.exists());
    }
}
