//! What a VM handler runs on: a machine monitor, its helpers, and the guest that Pods boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::kernel;
use super::process::Run;
use super::{image, place};

/// The variable that names the machine monitor: `qemu` (the default) or `cloud-hypervisor`.
pub const HYPERVISOR: &str = "BULKHEAD_HYPERVISOR";

/// The variable that holds the absolute path of a cloud-hypervisor.
pub const CLOUD_HYPERVISOR: &str = "BULKHEAD_CLOUD_HYPERVISOR";

/// The crate whose program carries vsock to QEMU's machines, and its version.
const VSOCK_DEVICE: (&str, &str) = ("vhost-device-vsock", "0.3.0");

/// Where Debian 13 and 12 put virtiofsd.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// How long an image of another build is kept: a run that uses it may still go on.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// The program that runs the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Monitor {
    /// QEMU, emulating where there is no KVM.
    Qemu {
        /// The program.
        program: PathBuf,
        /// The vsock device that runs beside it.
        vsock_device: PathBuf,
    },
    /// cloud-hypervisor on KVM.
    CloudHypervisor {
        /// The program.
        program: PathBuf,
    },
}

impl Monitor {
    /// The program itself.
    pub fn program(&self) -> &Path {
        match self {
            Self::Qemu { program, .. } | Self::CloudHypervisor { program } => program,
        }
    }

    /// Finds the one that [`HYPERVISOR`] asks for.
    fn find(cache: &Path) -> Result<Self> {
        let asked = std::env::var(HYPERVISOR).unwrap_or_default();
        match asked.as_str() {
            "" | "qemu" => Ok(Self::Qemu {
                program: in_path("qemu-system-x86_64")
                    .context("qemu-system-x86_64 is not installed: hack/setup does it")?,
                vsock_device: vsock_device(cache)?,
            }),
            "cloud-hypervisor" => {
                let named = cloud_hypervisor()?;
                Ok(Self::CloudHypervisor {
                    program: named.with_context(|| format!("{CLOUD_HYPERVISOR} is not set"))?,
                })
            }
            other => bail!("{HYPERVISOR}={other:?}: must be qemu or cloud-hypervisor"),
        }
    }
}

/// The cloud-hypervisor that [`CLOUD_HYPERVISOR`] names; `None` when it names none.
pub fn cloud_hypervisor() -> Result<Option<PathBuf>> {
    let Some(named) = std::env::var_os(CLOUD_HYPERVISOR).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let program = PathBuf::from(named);
    ensure!(
        program.is_absolute() && program.is_file(),
        "{CLOUD_HYPERVISOR}={}: must be the absolute path of a program",
        program.display()
    );
    Ok(Some(program))
}

/// Everything a VM handler's file names.
#[derive(Debug, Clone)]
pub struct VmTools {
    /// What runs the machines.
    pub monitor: Monitor,
    /// What serves shared directories.
    pub virtiofsd: PathBuf,
    /// The directory of kernel and initramfs.
    pub guest: PathBuf,
}

/// Finds, builds and downloads what is not in the cache; the inner error tells what this machine
/// lacks. That no image can be made of what is there is the outer one: a fault, not a lack.
pub fn gather(cache: &Path) -> Result<std::result::Result<VmTools, String>> {
    match parts(cache) {
        Ok((monitor, virtiofsd, inputs)) => {
            Ok(Ok(VmTools { monitor, virtiofsd, guest: inputs.image(cache)? }))
        }
        Err(e) => Ok(Err(format!("{e:#}"))),
    }
}

fn parts(cache: &Path) -> Result<(Monitor, PathBuf, Inputs)> {
    ensure!(cfg!(target_arch = "x86_64"), "the bed's virtual machines are x86-64");
    Ok((Monitor::find(cache)?, virtiofsd()?, Inputs::find(cache)?))
}

/// virtiofsd, where the machine's release puts it.
pub fn virtiofsd() -> Result<PathBuf> {
    let found = VIRTIOFSD.iter().map(PathBuf::from).find(|path| path.is_file());
    found.with_context(|| format!("no virtiofsd at {}", VIRTIOFSD.join(" or ")))
}

/// A program of this machine, as a shell of root's would find it.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    dirs.map(|dir| Path::new(dir).join(program)).into_iter().find(|path| path.is_file())
}

fn vsock_device(cache: &Path) -> Result<PathBuf> {
    let (name, version) = VSOCK_DEVICE;
    let root = cache.join("tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        eprintln!("building {name} {version} (a minute, once)");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = cache.join("tools-build");
        let run =
            Run::new(cargo).args(["install", name, "--version", version, "--locked", "--root"]);
        let run = run.arg(&root).env("CARGO_TARGET_DIR", &build);
        run.deadline(Duration::from_secs(1800)).ok()?;
        fs::remove_dir_all(&build)?;
    }
    Ok(program)
}

/// What a guest is made of, and with.
#[derive(Debug)]
struct Inputs {
    bulkhead: PathBuf,
    agent: PathBuf,
    kernel: PathBuf,
}

impl Inputs {
    fn find(cache: &Path) -> Result<Self> {
        Ok(Self {
            bulkhead: place::built("bulkhead").context("bulkhead has not been built")?,
            agent: place::agent()
                .context("bulkhead-agent has not been built: hack/agent does it")?,
            kernel: kernel::deb(cache)?,
        })
    }

    /// The image, named by what went in; made unless it is there.
    fn image(&self, cache: &Path) -> Result<PathBuf> {
        let mut digest = Sha256::new();
        for input in [&self.bulkhead, &self.agent, &self.kernel] {
            let bytes = fs::read(input).with_context(|| format!("read {}", input.display()))?;
            digest.update(Sha256::digest(bytes));
        }
        let guests = cache.join("guests");
        let dir = guests.join(&image::hex(&digest.finalize())[..16]);
        if !dir.exists() {
            fs::create_dir_all(&guests)?;
            forget_old(&guests)?;
            let run = Run::new(&self.bulkhead).args(["guest", "build", "--agent"]).arg(&self.agent);
            let run = run.arg("--kernel-deb").arg(&self.kernel).arg("--output").arg(&dir);
            // The image appears whole or not at all.
            run.deadline(Duration::from_secs(300)).ok()?;
        }
        Ok(dir)
    }
}

fn forget_old(guests: &Path) -> Result<()> {
    for entry in fs::read_dir(guests)? {
        let entry = entry?;
        let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
        if age.is_ok_and(|age| age > OLD) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
