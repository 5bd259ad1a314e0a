//! Makes an image.
//!
//! [`AgentProgram::read`], [`fetch`] (or a file of one's own) and [`build`] are the steps, each
//! the next one's input. The same inputs give the same bytes, everywhere and always.

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

use crate::{Agent, Digest, FORMAT, Guest, ImageFile, Kernel, MANIFEST, Manifest};

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

/// The protocol that this version speaks.
pub use agent_api::PROTOCOL;

/// The package whose newest version is taken where nothing else is asked for.
pub const DEFAULT_PACKAGE: &str = "linux-image-cloud-amd64";

/// What to make an image of.
#[derive(Debug)]
pub struct Plan {
    /// The image's directory. What is there is replaced in one step, if it is an image.
    pub output: PathBuf,
    /// The kernel.
    pub kernel: KernelSource,
    /// The agent.
    pub agent: AgentProgram,
    /// Modules to load at boot beside those that every guest needs.
    pub extra_modules: Vec<String>,
    /// Whether modules keep their signatures: for kernels that load no others. It makes each boot
    /// slower.
    pub keep_signatures: bool,
}

/// Where the kernel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// In a Debian package's file, with its modules.
    Deb(PathBuf),
    /// In a file: an uncompressed ELF file or a bzImage.
    File {
        /// The kernel.
        kernel: PathBuf,
        /// A directory with its modules, `/lib/modules/<release>` or the like. Without one,
        /// everything must be built in.
        modules: Option<PathBuf>,
    },
}

/// Makes an image and puts it in place. `step` is told of each step before it is done, and may
/// break off. When this fails nothing is left behind, and an image that was there still is.
///
/// # Errors
///
/// [`BuildError`] names the file, what is wrong with it, and what to do.
pub fn build(
    plan: &Plan,
    step: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Guest, BuildError> {
    let mut step = |text: String| match step(&text) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(BuildError::Stopped),
    };
    let place = NewDir::beside(&plan.output)?;

    let (packed, tree, mut kernel) = match &plan.kernel {
        KernelSource::Deb(path) => {
            step(format!("unpacking {}", path.display()))?;
            let deb = Deb::read(path)?;
            let (package, version) = (Some(deb.package), Some(deb.version));
            (deb.vmlinuz, Some(deb.modules), Kernel { package, version, release: String::new() })
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

    step(format!("choosing modules for {}", kernel.release))?;
    let mut modules = match &tree {
        Some(tree) => tree.choose(&plan.extra_modules, &kernel.release)?,
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
    place.write(&manifest.vmlinux.file, &vmlinux)?;
    place.write(&manifest.initramfs.file, &initramfs)?;
    place.write(MANIFEST, &manifest.to_bytes().map_err(|e| BuildError::Pack(e.into()))?)?;
    // What is put in place has been read back from the disk.
    Guest::open(place.path())?.verify()?;
    place.publish(&plan.output)?;
    Ok(Guest::open(&plan.output)?)
}

fn describe(file: &str, bytes: &[u8]) -> ImageFile {
    ImageFile { file: file.to_owned(), size: bytes.len() as u64, sha256: Digest::of(bytes) }
}
