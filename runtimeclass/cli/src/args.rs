//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::credential_provider::args::ProviderArgs;
use crate::pull::args::{FileArgs, PullArgs};

/// Runs Pods with their runtime handlers on this node, without a cluster.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, about)]
pub(crate) struct Cli {
    /// The socket of the container runtime (CRI v1)
    #[arg(
        long,
        visible_alias = "socket",
        global = true,
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub(crate) runtime_endpoint: String,
    /// Where played Pods keep their volumes and logs
    #[arg(
        long,
        global = true,
        env = "BULKHEAD_STATE_DIR",
        default_value = "/var/lib/bulkhead/play"
    )]
    pub(crate) state_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the Pods of Kubernetes YAML files and print their logs until they exit
    Play(PlayArgs),
    /// Stop and remove played Pods with everything that belongs to them
    Down(DownArgs),
    /// Run a command in a container of a played Pod
    Exec(ExecArgs),
    /// Connect with a container's process in a played Pod; its stdin and tty fields decide which streams exist
    Attach(AttachArgs),
    /// Print the logs of a played Pod
    Logs(LogsArgs),
    /// List the played Pods of this node
    Ps,
    /// Build, verify or show the image that VM Pods boot
    #[command(subcommand)]
    Guest(GuestCommand),
    /// Print what a node and a cluster need for the handlers, or write the node's files
    Install(InstallArgs),
    /// Pull an image with its registry credential, for a handler or into a directory, or show why that fails
    Pull(PullArgs),
    /// The kubelet's image credential provider: reads a request from standard input, writes the answer to standard output
    CredentialProvider(ProviderArgs),
}

/// `bulkhead install`.
#[derive(Args, Debug)]
pub(crate) struct InstallArgs {
    /// Only this handler (may be repeated)
    #[arg(long, value_enum)]
    pub(crate) handler: Vec<Handler>,
    /// The node's containerd: 1 (1.6 and 1.7) or 2
    #[arg(long, value_name = "MAJOR", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=2))]
    pub(crate) containerd: u32,
    /// Write the node's files; an existing file with other content is not replaced
    #[arg(long)]
    pub(crate) write: bool,
    /// Where the node's root is, for --write
    #[arg(long, value_name = "DIR", default_value = "/", requires = "write")]
    pub(crate) root: PathBuf,
    /// An image pattern for which the kubelet is to ask the credential provider (may be repeated)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) match_image: Vec<String>,
    #[command(flatten)]
    pub(crate) files: FileArgs,
}

impl InstallArgs {
    /// The selected handlers.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = Handler> {
        let all = [Handler::Gvisor, Handler::KataContainers];
        all.into_iter().filter(|it| self.handler.is_empty() || self.handler.contains(it))
    }
}

/// A handler that ships with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Handler {
    /// Pods in a gVisor sandbox
    Gvisor,
    /// Each Pod in a VM of its own
    KataContainers,
}

/// `bulkhead guest`.
#[derive(Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Build an image of a kernel and the agent; an existing one is replaced atomically
    Build(GuestBuildArgs),
    /// Compare an image's files with its manifest
    Verify(GuestDirArgs),
    /// Print an image's contents
    Show(GuestDirArgs),
}

/// `bulkhead guest build`.
#[derive(Args, Debug)]
pub(crate) struct GuestBuildArgs {
    /// The image's directory
    #[arg(short, long, value_name = "DIR", default_value = guest_image::DEFAULT_DIR)]
    pub(crate) output: PathBuf,
    /// The Debian package of the kernel, or one that depends on it; the node's apt downloads it
    #[arg(
        long,
        value_name = "NAME",
        default_value = guest_image::build::DEFAULT_PACKAGE,
        conflicts_with_all = ["kernel_deb", "kernel"]
    )]
    pub(crate) kernel_package: String,
    /// A downloaded package to take kernel and modules from
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    pub(crate) kernel_deb: Option<PathBuf>,
    /// A kernel of your own: vmlinux or bzImage, with a PVH entry
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The modules of --kernel (/lib/modules/RELEASE); without it, everything must be built in
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,
    /// More modules to load in the guest, where containers cannot load any
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) extra_modules: Vec<String>,
    /// Keep the modules' signatures, for a kernel that loads no unsigned ones; boots take longer
    #[arg(long)]
    pub(crate) keep_signatures: bool,
    /// The agent; by default bulkhead-agent beside this program or in /usr/libexec/bulkhead
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

/// `bulkhead guest verify` and `bulkhead guest show`.
#[derive(Args, Debug)]
pub(crate) struct GuestDirArgs {
    /// The image's directory
    #[arg(value_name = "DIR", default_value = guest_image::DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
}

/// `bulkhead play`.
#[derive(Args, Debug)]
pub(crate) struct PlayArgs {
    /// Files with Pods, Secrets, ConfigMaps and RuntimeClasses; - is the standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Remove the Pods after their exit, also after a signal
    #[arg(long)]
    pub(crate) rm: bool,
    /// Exit when the Pods run, without following their logs
    #[arg(short, long, visible_alias = "no-follow", conflicts_with_all = ["exec", "command"])]
    pub(crate) detach: bool,
    /// The container in which CMD runs once all containers run; by default the first one
    #[arg(long, value_name = "[NAMESPACE/]POD[/CONTAINER]", requires = "command")]
    pub(crate) exec: Option<String>,
    /// Give up after so many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    /// When to pull images; by default as imagePullPolicy says, or only missing ones if it is not set
    #[arg(long, value_enum)]
    pub(crate) pull: Option<Pull>,
    /// Leave out a field that play does not support, such as livenessProbe (may be repeated)
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    pub(crate) ignore: Vec<String>,
    /// The directory to which localhostProfile of seccompProfile is relative
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/seccomp")]
    pub(crate) seccomp_root: PathBuf,
    /// How cgroups are named; by default as the runtime is configured
    #[arg(long, value_enum)]
    pub(crate) cgroup_driver: Option<CgroupDriver>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Run CMD in a running container; its output and exit code replace the Pod's
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// `bulkhead down`.
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    /// The files that were played, or the names of Pods
    #[arg(required_unless_present = "all", value_name = "FILE|[NAMESPACE/]POD")]
    pub(crate) targets: Vec<String>,
    /// Every played Pod of this node
    #[arg(long, conflicts_with = "targets")]
    pub(crate) all: bool,
    /// Seconds between SIGTERM and SIGKILL; by default each Pod's terminationGracePeriodSeconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..=86_400))]
    pub(crate) grace: Option<i64>,
}

/// `bulkhead exec`.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The container; by default the Pod's first one
    #[arg(value_name = "[NAMESPACE/]POD[/CONTAINER]")]
    pub(crate) container: String,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Kill the command after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// When to pull an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// Only if this node does not have the image
    Missing,
    /// Never: fail if this node does not have the image
    Never,
    /// Ask the registry every time
    Always,
}

impl From<Pull> for kube_manifest::PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Missing => Self::Missing,
            Pull::Never => Self::Never,
            Pull::Always => Self::Always,
        }
    }
}

/// What manages the cgroups of Pods, which decides how they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupDriver {
    /// The runtime itself: paths
    Cgroupfs,
    /// systemd: slices
    Systemd,
}

impl From<CgroupDriver> for pod_runner::CgroupDriver {
    fn from(driver: CgroupDriver) -> Self {
        match driver {
            CgroupDriver::Cgroupfs => Self::Cgroupfs,
            CgroupDriver::Systemd => Self::Systemd,
        }
    }
}

/// How a command runs.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct RunArgs {
    /// Pass the standard input to CMD
    #[arg(short = 'i', long, requires = "command", conflicts_with = "timeout")]
    pub(crate) stdin: bool,
    /// Run CMD in a terminal
    #[arg(short = 't', long, requires = "command", conflicts_with = "timeout")]
    pub(crate) tty: bool,
}

/// `bulkhead attach`.
#[derive(Args, Debug)]
pub(crate) struct AttachArgs {
    /// The container; by default the Pod's first one
    #[arg(value_name = "[NAMESPACE/]POD[/CONTAINER]")]
    pub(crate) container: String,
    /// Pass the standard input too
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
}

/// `bulkhead logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The Pod, or one container of it
    #[arg(value_name = "[NAMESPACE/]POD[/CONTAINER]")]
    pub(crate) container: String,
    /// Go on until the containers exit
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn forms() {
        let play = |args: &[&str]| Cli::try_parse_from(["bulkhead", "play"].iter().chain(args));
        let Command::Play(args) =
            play(&["--rm", "--exec", "web/main", "a.yaml", "-", "--", "ls", "-l"]).unwrap().command
        else {
            panic!("not play");
        };
        assert_eq!(args.files, ["a.yaml", "-"].map(PathBuf::from));
        assert_eq!(args.exec.as_deref(), Some("web/main"));
        assert_eq!(args.command, ["ls", "-l"]);
        assert!(play(&[]).is_err());
        assert!(play(&["--exec", "web", "a.yaml"]).is_err());
        assert!(play(&["-d", "a.yaml", "--", "ls"]).is_err());
        assert!(play(&["--timeout", "0", "a.yaml"]).is_err());
        let socket = ["bulkhead", "--socket", "unix:///x", "play", "--rm", "a.yaml"];
        assert_eq!(Cli::try_parse_from(socket).unwrap().runtime_endpoint, "unix:///x");
        let down = |args: &[&str]| Cli::try_parse_from(["bulkhead", "down"].iter().chain(args));
        assert!(down(&["web"]).is_ok() && down(&["--all"]).is_ok());
        assert!(down(&[]).is_err() && down(&["--all", "web"]).is_err());
        let build = |args: &[&str]| {
            Cli::try_parse_from(["bulkhead", "guest", "build"].iter().chain(args)).is_ok()
        };
        assert!(build(&[]) && build(&["--kernel", "k", "--modules", "m"]));
        assert!(build(&["--extra-modules", "tun,veth", "--kernel-deb", "k.deb"]));
        assert!(!build(&["--modules", "m"]) && !build(&["--kernel", "k", "--kernel-deb", "d"]));
        assert!(!build(&["--kernel", "k", "--kernel-package", "p"]));
    }
}
