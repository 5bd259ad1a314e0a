//! The command line of `bulkhead-testbed`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::bed::handler::Handler;
use crate::bed::version::Version;
use crate::plan::Tier;
use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about, version)]
pub(crate) struct Cli {
    /// The bed's id: 4 to 8 lower-case letters and digits; a fresh one by default.
    #[arg(long, global = true)]
    pub(crate) bed: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fill the cache with packages, images and built tools.
    Fetch,
    /// Play cases on real containerds.
    E2e(E2e),
    /// Measure handlers side by side; prints numbers as Markdown, asserts none.
    Bench(Bench),
    /// Measure `bulkhead pull` beside `skopeo copy` from a registry on loopback; asserts no number.
    BenchPull(BenchPull),
    /// Run critest under one handler and compare with the lists of failures in tests/critest.
    Critest(Critest),
    /// Boot a VM with KVM and cgroup v2 and run a command in it: by default the cases of the VM
    /// handler, on the cloud-hypervisor that BULKHEAD_CLOUD_HYPERVISOR names.
    Nested(Nested),
    /// Bring up one containerd and leave it running.
    Up {
        /// Which line of releases.
        #[arg(long, default_value = "1.7", value_parser = version)]
        containerd: Version,
        /// Where runsc is built from the newest module too.
        #[arg(long)]
        newest: bool,
        /// With the programs and image of VMs.
        #[arg(long)]
        vm: bool,
    },
    /// Remove the bed of `--bed`, or every bed of this machine with `--all`.
    Down {
        /// Every bed that has a folder here.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct E2e {
    /// Only on these containerds.
    #[arg(long, value_parser = version, value_delimiter = ',')]
    pub(crate) containerd: Vec<Version>,
    /// Only under these handlers.
    #[arg(long, value_parser = handler, value_delimiter = ',')]
    pub(crate) handler: Vec<Handler>,
    /// Only the cases of this tier: "commit" plays on the newest containerd whole suites and on the
    /// older ones what depends on them, "full" nearly all cases on each.
    #[arg(long, value_parser = tier)]
    pub(crate) tier: Option<Tier>,
    /// Print the names of the cases and exit.
    #[arg(long)]
    pub(crate) list: bool,
    /// Only cases whose name holds one of these.
    pub(crate) filters: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// On this containerd.
    #[arg(long, default_value = "2.1", value_parser = version)]
    pub(crate) containerd: Version,
    /// Only these handlers.
    #[arg(long, value_parser = handler, value_delimiter = ',')]
    pub(crate) handler: Vec<Handler>,
    /// How many Pods each handler runs.
    #[arg(long, default_value = "15", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Write every number to this file too.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchPull {
    /// How often each client pulls.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// The image's layers.
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) layers: u32,
    /// The size of each, in MiB.
    #[arg(long, default_value = "103", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) layer_mib: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Critest {
    /// Under this handler.
    #[arg(long, default_value = "gvisor", value_parser = handler)]
    pub(crate) handler: Handler,
    /// On this containerd.
    #[arg(long, default_value = "2.1", value_parser = version)]
    pub(crate) containerd: Version,
    /// NRI's specs and no others.
    #[arg(long)]
    pub(crate) nri: bool,
    /// Only specs that this regular expression matches; may be given again.
    #[arg(long)]
    pub(crate) focus: Vec<String>,
    /// No spec that this regular expression matches; may be given again.
    #[arg(long)]
    pub(crate) skip: Vec<String>,
    /// Where the log, the JUnit file and the tables go.
    #[arg(long, default_value = "target/critest")]
    pub(crate) out: PathBuf,
    /// Write the table of all runs in that folder into this file, and run nothing.
    #[arg(long)]
    pub(crate) readme: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Nested {
    /// The VM's memory.
    #[arg(long, default_value = "4096", value_parser = clap::value_parser!(u32).range(512..))]
    pub(crate) memory_mib: u32,
    /// The VM's processors. With more than one it is a little faster, and crashes more often.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) processors: u32,
    /// How long the VM may run.
    #[arg(long, default_value = "90", value_parser = clap::value_parser!(u64).range(1..1440))]
    pub(crate) minutes: u64,
    /// Only cases whose name holds one of these, when the cases are played.
    #[arg(long = "case")]
    pub(crate) cases: Vec<String>,
    /// What to run instead.
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

fn version(label: &str) -> Result<Version> {
    Version::named(label).ok_or_else(|| anyhow!("{label:?} is none of 1.6, 1.7, 2.1"))
}

fn handler(name: &str) -> Result<Handler> {
    let known = Handler::ALL.map(Handler::name).join(", ");
    Handler::named(name).ok_or_else(|| anyhow!("{name:?} is none of {known}"))
}

fn tier(name: &str) -> Result<Tier> {
    let known = Tier::ALL.map(Tier::name).join(" and ");
    Tier::ALL
        .into_iter()
        .find(|tier| tier.name() == name)
        .ok_or_else(|| anyhow!("{name:?} is not one of {known}"))
}
