//! `bulkhead guest`: the image that VM Pods boot.

use std::env;
use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_image::build::{
    self, AgentError, AgentProgram, BuildError, FetchError, KernelSource, Plan,
};
use guest_image::{GuestError, GuestImage, ImageFile};
use sandbox_host::{HostError, RealHost};

use crate::args::{GuestBuildArgs, GuestCommand, GuestDirArgs};
use crate::output;
use crate::signals::{Caught, Signals};

/// The agent's name.
const AGENT: &str = "bulkhead-agent";

/// Where packages put the agent.
const LIBEXEC: &str = "/usr/libexec/bulkhead";

/// The environment variables that apt gets: proxies and its configuration.
const APT_ENVIRONMENT: [&str; 9] = [
    "APT_CONFIG",
    "ALL_PROXY",
    "FTP_PROXY",
    "HTTPS_PROXY",
    "all_proxy",
    "ftp_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Why a guest command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestCommandError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Host(#[from] HostError),
    /// No agent was named, and there is none at the default paths.
    #[error("there is no agent at {0}; `hack/guest` builds one, and --agent sets its path")]
    NoAgent(String),
    #[error("cannot make a temporary directory for the download")]
    Temporary(#[source] io::Error),
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

type Result<T> = std::result::Result<T, GuestCommandError>;

pub(crate) async fn run(command: &GuestCommand) -> Result<u8> {
    match command {
        GuestCommand::Build(args) => make(args).await,
        GuestCommand::Verify(args) => verify(args),
        GuestCommand::Show(args) => {
            print(&describe(&GuestImage::open(&args.dir)?))?;
            Ok(0)
        }
    }
}

fn verify(args: &GuestDirArgs) -> Result<u8> {
    let guest = GuestImage::open(&args.dir)?;
    guest.verify()?;
    guest.expect_protocol(build::PROTOCOL)?;
    print(&format!("{} is complete: every file matches its manifest\n", guest.dir().display()))?;
    Ok(0)
}

async fn make(args: &GuestBuildArgs) -> Result<u8> {
    // Caught, so that no partial image stays behind.
    let mut signals = Signals::catch().map_err(GuestCommandError::Signals)?;
    let host = RealHost::new()?;
    let path = match &args.agent {
        Some(path) => path.clone(),
        None => find_agent(&agent_places())?,
    };
    let agent = AgentProgram::read(&path)?;
    step(&format!("agent {} of {}", agent.version, path.display()));

    let place = tempfile::Builder::new().prefix("bulkhead-guest-").tempdir();
    let place = place.map_err(GuestCommandError::Temporary)?;
    let kernel = match (&args.kernel_deb, &args.kernel) {
        (Some(deb), _) => KernelSource::Deb(deb.clone()),
        (None, Some(kernel)) => {
            KernelSource::File { kernel: kernel.clone(), modules: args.modules.clone() }
        }
        (None, None) => {
            let package = &args.kernel_package;
            step(&format!("downloading the kernel of Debian's package {package}"));
            let apt = apt_environment();
            let deb = build::fetch(&host, package, place.path(), &apt);
            tokio::select! {
                deb = deb => KernelSource::Deb(deb?),
                caught = signals.next() => return Ok(stopped(caught)),
            }
        }
    };
    let plan = Plan {
        output: args.output.clone(),
        kernel,
        agent,
        extra_modules: args.extra_modules.clone(),
        keep_signatures: args.keep_signatures,
    };
    let (built, caught) = build_until(plan, &mut signals).await;
    match (built, caught) {
        (Err(BuildError::Stopped), Some(caught)) => Ok(stopped(caught)),
        (built, _) => {
            print(&describe(&built?))?;
            Ok(0)
        }
    }
}

/// Builds; a signal stops it before the next step.
async fn build_until(
    plan: Plan,
    signals: &mut Signals,
) -> (std::result::Result<GuestImage, BuildError>, Option<Caught>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut task = tokio::task::spawn_blocking(move || {
        build::build(&plan, &mut |text| {
            if stopped.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            step(text);
            ControlFlow::Continue(())
        })
    });
    let mut caught = None;
    loop {
        tokio::select! {
            built = &mut task => match built {
                Ok(built) => return (built, caught),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            signal = signals.next(), if caught.is_none() => {
                stop.store(true, Ordering::Relaxed);
                caught = Some(signal);
            }
        }
    }
}

fn stopped(caught: Caught) -> u8 {
    eprintln!("bulkhead: {} caught; no image was built", caught.name);
    caught.exit_code
}

fn step(text: &str) {
    eprintln!("bulkhead: {text}");
}

fn print(text: &str) -> Result<()> {
    output::print(text.as_bytes(), b"").map_err(GuestCommandError::Print)
}

/// The agent's default paths.
fn agent_places() -> Vec<PathBuf> {
    let beside = env::current_exe().ok().map(|program| program.with_file_name(AGENT));
    beside.into_iter().chain([Path::new(LIBEXEC).join(AGENT)]).collect()
}

fn find_agent(places: &[PathBuf]) -> Result<PathBuf> {
    let found = places.iter().find(|path| path.is_file());
    found.cloned().ok_or_else(|| {
        let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        GuestCommandError::NoAgent(places.join(" or "))
    })
}

fn apt_environment() -> Vec<(OsString, OsString)> {
    let value = |name: &str| env::var_os(name).map(|value| (OsString::from(name), value));
    APT_ENVIRONMENT.into_iter().filter_map(value).collect()
}

/// An image's description.
fn describe(guest: &GuestImage) -> String {
    let manifest = guest.manifest();
    let kernel = &manifest.kernel;
    let agent = &manifest.agent;
    let origin = match (&kernel.package, &kernel.version) {
        (Some(package), Some(version)) => format!(" ({package} {version})"),
        (Some(package), None) => format!(" ({package})"),
        (None, _) => String::new(),
    };
    let file = |file: &ImageFile| format!("{:>7}  sha256:{}", size(file.size), file.sha256);
    let modules =
        if manifest.modules.is_empty() { "none".to_owned() } else { manifest.modules.join(" ") };
    format!(
        "image      {}\nkernel     {}{origin}\nagent      {}, protocol {}, {}, sha256:{}\n\
         vmlinux    {}\ninitramfs  {}\nmodules    {modules}\n",
        guest.dir().display(),
        kernel.release,
        agent.version,
        manifest.protocol,
        size(agent.size),
        agent.sha256,
        file(&manifest.vmlinux),
        file(&manifest.initramfs),
    )
}

fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        return format!("{} KiB", bytes.div_ceil(1 << 10));
    }
    let tenths = (bytes * 10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let texts = [0, 1, 1 << 20, (1 << 20) + 1, 53_243_444].map(size);
        assert_eq!(texts, ["0 KiB", "1 KiB", "1.0 MiB", "1.1 MiB", "50.8 MiB"]);
    }

    #[test]
    fn the_agent_is_looked_for_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["a", "b", "c"].map(|name| dir.path().join(name));
        let error = find_agent(&places).unwrap_err().to_string();
        let text = error.replace(&dir.path().display().to_string(), "DIR");
        assert_eq!(
            text,
            "there is no agent at DIR/a or DIR/b or DIR/c; `hack/guest` builds one, and --agent sets its path"
        );
        std::fs::write(&places[1], "").unwrap();
        std::fs::write(&places[2], "").unwrap();
        assert_eq!(find_agent(&places).unwrap(), places[1]);
        let places = agent_places();
        assert_eq!(places.last().unwrap(), Path::new("/usr/libexec/bulkhead/bulkhead-agent"));
        assert_eq!(places.len(), 2);
    }
}
