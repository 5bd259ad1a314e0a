//! What a VM handler needs: a VMM, its helpers, and the guest image.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::kernel;
use super::process::{Run, in_path};
use super::{image, place};

/// The variable that names the VMM: `qemu` (the default) or `cloud-hypervisor`.
pub(crate) const HYPERVISOR: &str = "BULKHEAD_HYPERVISOR";

/// The variable that holds the absolute path of a cloud-hypervisor.
pub(crate) const CLOUD_HYPERVISOR: &str = "BULKHEAD_CLOUD_HYPERVISOR";

/// The crate of QEMU's vsock device, and its version.
const VSOCK_DEVICE: (&str, &str) = ("vhost-device-vsock", "0.3.0");

/// Where Debian 13 and 12 put virtiofsd.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// How long an image of another build is kept: a run that uses it may still go on.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// The program that runs the VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vmm {
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

impl Vmm {
    /// The program itself.
    pub(crate) fn program(&self) -> &Path {
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
                    .context("qemu-system-x86_64 is not installed: run hack/setup")?,
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
pub(crate) fn cloud_hypervisor() -> Result<Option<PathBuf>> {
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
pub(crate) struct VmTools {
    /// The VMM.
    pub(crate) vmm: Vmm,
    /// virtiofsd, which serves shared directories.
    pub(crate) virtiofsd: PathBuf,
    /// The directory of kernel and initramfs.
    pub(crate) guest: PathBuf,
}

/// Finds, builds and downloads what is not in the cache; the inner error is what this machine
/// lacks. That the image cannot be built is a failure, the outer error.
pub(crate) fn gather(cache: &Path) -> Result<std::result::Result<VmTools, String>> {
    match parts(cache) {
        Ok((vmm, virtiofsd, inputs)) => {
            Ok(Ok(VmTools { vmm, virtiofsd, guest: inputs.image(cache)? }))
        }
        Err(e) => Ok(Err(format!("{e:#}"))),
    }
}

fn parts(cache: &Path) -> Result<(Vmm, PathBuf, Inputs)> {
    ensure!(cfg!(target_arch = "x86_64"), "the bed's VMs are x86-64");
    Ok((Vmm::find(cache)?, virtiofsd()?, Inputs::find(cache)?))
}

/// virtiofsd, where this machine's release installs it.
pub(crate) fn virtiofsd() -> Result<PathBuf> {
    let found = VIRTIOFSD.iter().map(PathBuf::from).find(|path| path.is_file());
    found.with_context(|| format!("no virtiofsd at {}", VIRTIOFSD.join(" or ")))
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

/// The parts of a guest image, and the program that builds it.
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
            agent: place::agent().context("bulkhead-agent has not been built: run hack/agent")?,
            kernel: kernel::deb(cache)?,
        })
    }

    /// The image, named by a hash of its parts; built unless the cache has it.
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
            // The directory appears only when it is complete.
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
