//! Builds a guest image.
//!
//! The steps are [`AgentProgram::read`], [`fetch`] (unless the kernel is in a file) and [`build`].
//! Builds are reproducible: the same inputs produce the same bytes.

mod agent;
mod deb;
mod decompress;
mod elf;
mod error;
mod fetch;
#[cfg(test)]
mod fixtures;
mod initramfs;
mod kernel;
mod modinfo;
mod modules;
mod publish;
mod signature;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::guest::GuestImage;
use crate::manifest::{Agent, FORMAT, ImageFile, Kernel, MANIFEST, Manifest};

pub use agent::{AgentError, AgentProgram};
pub use deb::DebError;
pub use error::BuildError;
pub use fetch::{FetchError, fetch};
pub use kernel::KernelError;
pub use modules::ModuleError;
pub use publish::PublishError;

use deb::Deb;
use modules::ModuleTree;
use publish::NewDir;

/// The version of `agent-api` that the shim speaks.
pub use agent_api::PROTOCOL;

/// The default package, of which the newest version is used.
pub const DEFAULT_PACKAGE: &str = "linux-image-cloud-amd64";

/// The inputs of an image.
#[derive(Debug)]
pub struct Plan {
    /// The image's directory. An image that exists there is replaced atomically.
    pub output: PathBuf,
    /// The kernel.
    pub kernel: KernelSource,
    /// The agent.
    pub agent: AgentProgram,
    /// Modules to load at boot in addition to those that every guest needs.
    pub extra_modules: Vec<String>,
    /// Whether modules keep their signatures, for kernels that load no unsigned ones. This makes each
    /// boot slower.
    pub keep_signatures: bool,
}

/// The kernel's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// A Debian package, with its modules.
    Deb(PathBuf),
    /// A file.
    File {
        /// The kernel: an uncompressed ELF file or a bzImage.
        kernel: PathBuf,
        /// The directory of its modules, such as `/lib/modules/<release>`. `None` if everything that
        /// a guest needs is built in.
        modules: Option<PathBuf>,
    },
}

/// Builds an image and puts it in place. `step` is called before each step and may stop the build.
/// A failure leaves nothing behind, and an existing image unchanged.
///
/// # Errors
///
/// [`BuildError`] names the file, the problem and the remedy.
pub fn build(
    plan: &Plan,
    step: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<GuestImage, BuildError> {
    let mut step = |text: String| match step(&text) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(BuildError::Stopped),
    };
    let new = NewDir::beside(&plan.output)?;

    // The release is read from the kernel below.
    let (packed, tree, mut kernel) = match &plan.kernel {
        KernelSource::Deb(path) => {
            step(format!("unpacking {}", path.display()))?;
            let deb = Deb::read(path)?;
            let kernel = Kernel {
                package: Some(deb.package),
                version: Some(deb.version),
                release: String::new(),
            };
            (deb.vmlinuz, Some(deb.modules), kernel)
        }
        KernelSource::File { kernel, modules } => {
            step(format!("reading {}", kernel.display()))?;
            let tree = modules.as_deref().map(ModuleTree::read).transpose()?;
            let none = Kernel { package: None, version: None, release: String::new() };
            (kernel::read(kernel)?, tree, none)
        }
    };
    let vmlinux = kernel::vmlinux(packed)?;
    kernel.release = kernel::release(&vmlinux)?;

    step(format!("selecting modules for {}", kernel.release))?;
    let mut modules = match &tree {
        Some(tree) => tree.select(&plan.extra_modules, &kernel.release)?,
        None if plan.extra_modules.is_empty() => Vec::new(),
        None => return Err(ModuleError::NoTree(plan.extra_modules.join(", ")).into()),
    };

    if !plan.keep_signatures {
        modules.iter_mut().for_each(|module| signature::strip(&mut module.bytes));
    }

    step(format!("packing the agent {} and {} modules", plan.agent.version, modules.len()))?;
    let initramfs = initramfs::pack(&plan.agent.bytes, &modules).map_err(BuildError::Pack)?;
    let manifest = Manifest {
        format: FORMAT,
        protocol: plan.agent.protocol,
        kernel,
        agent: Agent {
            version: plan.agent.version.clone(),
            sha256: Digest::of(&plan.agent.bytes),
            size: plan.agent.bytes.len() as u64,
        },
        vmlinux: describe("vmlinux", &vmlinux),
        initramfs: describe("initramfs.cpio", &initramfs),
        modules: modules.into_iter().map(|module| module.name).collect(),
    };

    step(format!("writing {}", plan.output.display()))?;
    new.write(&manifest.vmlinux.file, &vmlinux)?;
    new.write(&manifest.initramfs.file, &initramfs)?;
    let bytes = manifest.to_bytes().map_err(|e| BuildError::Pack(e.into()))?;
    new.write(MANIFEST, &bytes)?;
    // Read back from the disk before it replaces anything.
    GuestImage::open(new.path())?.verify()?;
    new.publish(&plan.output)?;
    Ok(GuestImage::open(&plan.output)?)
}

fn describe(file: &str, bytes: &[u8]) -> ImageFile {
    ImageFile { file: file.to_owned(), size: bytes.len() as u64, sha256: Digest::of(bytes) }
}
