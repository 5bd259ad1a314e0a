//! Selects the modules that a guest needs from a kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::decompress::unpack;
use super::elf::ElfError;
use super::modinfo::{Modinfo, canonical};

/// Modules that every guest needs: for its devices, and for containers' root file systems.
const REQUIRED: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
    "overlay",
    "erofs",
    "ext4",
];

/// Modules that a guest uses if the kernel has them: memory balloon and hotplug, random numbers, a
/// console, raw sockets (ping, DHCP, tcpdump in containers), and bridges, which a container with
/// CAP_NET_ADMIN may create.
const OPTIONAL: [&str; 6] =
    ["virtio_balloon", "virtio_mem", "virtio_rng", "virtio_console", "af_packet", "bridge"];

/// Upper bound in bytes on a module.
const SIZE_MAX: u64 = 64 << 20;

/// The list of built-in modules, in the modules' directory.
const BUILTIN: &str = "modules.builtin";

/// An error of selecting modules.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A required module neither exists nor is built in.
    #[error(
        "{source_of} has no module {name}{wanted_by} and does not list it in modules.builtin; use \
         a kernel that has it, such as Debian's linux-image-cloud-amd64"
    )]
    Missing {
        /// Where modules were looked for.
        source_of: String,
        /// The module.
        name: String,
        /// A remark on the module that depends on it, or empty.
        wanted_by: String,
    },
    /// An extra module neither exists nor is built in.
    #[error(
        "{source_of} has no module {name}, and does not list it in modules.builtin; correct the \
         list of extra modules (a module has its file's name: the target REJECT is in ipt_REJECT)"
    )]
    NoExtra {
        /// Where modules were looked for.
        source_of: String,
        /// The module.
        name: String,
    },
    /// A module cannot be unpacked.
    #[error("the module {file} cannot be unpacked")]
    Unpack {
        /// Its file's name.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// A module is not for x86-64.
    #[error("the module {file} is not a module for x86-64")]
    Elf {
        /// Its file's name.
        file: String,
        /// The cause.
        source: ElfError,
    },
    /// A module has no `.modinfo` section.
    #[error("the module {file} has no section .modinfo; it is not a kernel module")]
    NoInfo {
        /// Its file's name.
        file: String,
    },
    /// A module was built for another kernel.
    #[error(
        "the module {file} was built for kernel {found}, not {expected}; use modules and kernel of one build"
    )]
    Release {
        /// Its file's name.
        file: String,
        /// The kernel that it is for.
        found: String,
        /// The kernel in the image.
        expected: String,
    },
    /// Extra modules are requested without a directory of modules.
    #[error(
        "the modules {0} are requested without a directory to take them from; use --modules DIR with --kernel"
    )]
    NoTree(String),
}

/// A decompressed module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// A module's file, possibly compressed.
#[derive(Debug)]
struct Packed {
    file: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// All modules of a kernel, by canonical name.
#[derive(Debug)]
pub(super) struct ModuleTree {
    source: String,
    packed: BTreeMap<String, Packed>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// An empty tree. `source` names in errors where modules were looked for.
    pub(super) fn new(source: String) -> Self {
        Self { source, packed: BTreeMap::new(), builtin: BTreeSet::new() }
    }

    /// The modules in the directory `dir`, at any depth.
    pub(super) fn read(dir: &Path) -> Result<Self, ModuleError> {
        let mut tree = Self::new(dir.display().to_string());
        let mut pending = vec![dir.to_owned()];
        while let Some(dir) = pending.pop() {
            let failed = |source| ModuleError::Read { path: dir.clone(), source };
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                let kind = entry.file_type().map_err(failed)?;
                let Ok(file) = entry.file_name().into_string() else { continue };
                // Symbolic links (`build`, `source`) are not followed.
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() && file == BUILTIN {
                    let list = fs::read(&path);
                    tree.add_builtin(&list.map_err(|source| ModuleError::Read { path, source })?);
                } else if kind.is_file() && module_name(&file).is_some() {
                    tree.insert(file, Content::File(path));
                }
            }
        }
        Ok(tree)
    }

    /// Whether `file` (a name without directories) is for [`ModuleTree::add`].
    pub(super) fn accepts(file: &str) -> bool {
        file == BUILTIN || module_name(file).is_some()
    }

    /// Adds a file of the tree.
    pub(super) fn add(&mut self, file: String, bytes: Vec<u8>) {
        if file == BUILTIN {
            self.add_builtin(&bytes);
        } else {
            self.insert(file, Content::Bytes(bytes));
        }
    }

    fn insert(&mut self, file: String, content: Content) {
        if let Some(name) = module_name(&file) {
            self.packed.insert(name, Packed { file, content });
        }
    }

    fn add_builtin(&mut self, list: &[u8]) {
        let list = String::from_utf8_lossy(list);
        let files = list.lines().filter_map(|line| line.rsplit('/').next());
        self.builtin.extend(files.filter_map(module_name));
    }

    /// Selects the required modules, the optional ones that exist, `extra`, and their dependencies, in
    /// an order in which they can be loaded.
    pub(super) fn select(
        &self,
        extra: &[String],
        release: &str,
    ) -> Result<Vec<Module>, ModuleError> {
        let mut selection =
            Selection { tree: self, release, seen: BTreeSet::new(), selected: Vec::new() };
        for name in REQUIRED {
            selection.require(name, "")?;
        }
        for name in OPTIONAL {
            selection.add_if_present(name)?;
        }
        for name in extra {
            if !self.has(name) {
                let source_of = self.source.clone();
                return Err(ModuleError::NoExtra { source_of, name: name.clone() });
            }
            selection.add_if_present(name)?;
        }
        Ok(selection.selected)
    }

    /// Whether a module exists as a file or is built in.
    fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.packed.contains_key(&name) || self.builtin.contains(&name)
    }

    fn unpack(&self, packed: &Packed, release: &str) -> Result<(Vec<u8>, Modinfo), ModuleError> {
        let file = || packed.file.clone();
        let unpacked = match &packed.content {
            Content::Bytes(bytes) => unpack(bytes, SIZE_MAX),
            Content::File(path) => {
                let failed = |source| ModuleError::Read { path: path.clone(), source };
                unpack(&fs::read(path).map_err(failed)?, SIZE_MAX)
            }
        };
        let bytes = unpacked.map_err(|source| ModuleError::Unpack { file: file(), source })?;
        let info = Modinfo::read(&bytes)
            .map_err(|source| ModuleError::Elf { file: file(), source })?
            .ok_or_else(|| ModuleError::NoInfo { file: file() })?;
        let found = info.release.clone().unwrap_or_default();
        if found != release {
            let expected = release.to_owned();
            return Err(ModuleError::Release { file: file(), found, expected });
        }
        Ok((bytes, info))
    }
}

/// The modules selected so far.
#[derive(Debug)]
struct Selection<'a> {
    tree: &'a ModuleTree,
    release: &'a str,
    seen: BTreeSet<String>,
    selected: Vec<Module>,
}

impl Selection<'_> {
    fn require(&mut self, name: &str, wanted_by: &str) -> Result<(), ModuleError> {
        if self.tree.has(name) {
            return self.add_if_present(name);
        }
        Err(ModuleError::Missing {
            source_of: self.tree.source.clone(),
            name: name.to_owned(),
            wanted_by: wanted_by.to_owned(),
        })
    }

    /// Adds a module after those that it depends on, if it exists as a file.
    fn add_if_present(&mut self, name: &str) -> Result<(), ModuleError> {
        let name = canonical(name);
        let Some(packed) = self.tree.packed.get(&name) else { return Ok(()) };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let (bytes, info) = self.tree.unpack(packed, self.release)?;
        for dependency in &info.soft_depends {
            self.add_if_present(dependency)?;
        }
        for dependency in &info.depends {
            self.require(dependency, &format!(" (which {name} depends on)"))?;
        }
        self.selected.push(Module { name, bytes });
        Ok(())
    }
}

/// The canonical name of the module in `file`; `None` if it is not a module.
fn module_name(file: &str) -> Option<String> {
    let mut parts = file.split('.');
    let name = parts.next().filter(|name| !name.is_empty())?;
    let rest = (parts.next()?, parts.next(), parts.next());
    let is_module = matches!(rest, ("ko", None | Some("xz" | "zst" | "gz"), None));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (is_module && name.bytes().all(allowed)).then(|| canonical(name))
}
