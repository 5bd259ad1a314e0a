//! A kernel's modules, and those of them that a guest needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::decompress::unpack;
use super::elf::ElfError;
use super::modinfo::{Modinfo, canonical};

/// Without these a guest is of no use: its devices, and the file systems of containers' roots.
const NEEDED: [&str; 9] = [
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

/// What a guest uses where the kernel has it: memory that can be given back or plugged in,
/// random bytes, a console, raw sockets (ping, DHCP, tcpdump in containers), and bridges, which a
/// container with CAP_NET_ADMIN may make.
const WELCOME: [&str; 6] =
    ["virtio_balloon", "virtio_mem", "virtio_rng", "virtio_console", "af_packet", "bridge"];

/// The most bytes that a module may have.
const MAX: u64 = 64 << 20;

/// The list of built-in modules, beside the modules.
const BUILTIN: &str = "modules.builtin";

/// Why modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A needed module is neither there nor built in.
    #[error(
        "{source_of} has no module {name}{wanted_by} and does not list it in modules.builtin; take \
         a kernel that has it, such as Debian's linux-image-cloud-amd64"
    )]
    Missing {
        /// Where modules were looked for.
        source_of: String,
        /// The module.
        name: String,
        /// Who wants it, or nothing.
        wanted_by: String,
    },
    /// A module that the caller asks for is neither there nor built in.
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
        /// Why.
        source: io::Error,
    },
    /// A module is no module for this machine.
    #[error("the module {file} is no module for x86-64")]
    Elf {
        /// Its file's name.
        file: String,
        /// What is wrong.
        source: ElfError,
    },
    /// A module says nothing about itself.
    #[error("the module {file} has no section .modinfo; it is no kernel module")]
    NoInfo {
        /// Its file's name.
        file: String,
    },
    /// A module is made for another kernel.
    #[error(
        "the module {file} is made for kernel {found}, not {expected}; give modules and kernel of one build"
    )]
    Release {
        /// Its file's name.
        file: String,
        /// The kernel that it is for.
        found: String,
        /// The kernel in the image.
        expected: String,
    },
    /// Modules are asked for but there are none.
    #[error("there is nothing to take the modules {0} from; give --modules DIR with --kernel")]
    NoTree(String),
}

/// A module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// A module's file, as it is packed.
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
    /// An empty one; `source` says in errors where modules were looked for.
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
                let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
                let Ok(file) = entry.file_name().into_string() else { continue };
                // Links lead out of it (`build`, `source`).
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

    /// Whether `file` (a name without directories) is to be given to [`ModuleTree::add`].
    pub(super) fn wants(file: &str) -> bool {
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

    /// The modules that a guest needs, those that it uses where they exist, `extra`, and what
    /// these depend on; in an order in which they can be loaded.
    pub(super) fn choose(
        &self,
        extra: &[String],
        release: &str,
    ) -> Result<Vec<Module>, ModuleError> {
        let mut choice = Choice { tree: self, release, seen: BTreeSet::new(), chosen: Vec::new() };
        for name in NEEDED {
            choice.need(name, "")?;
        }
        for name in WELCOME {
            choice.welcome(name)?;
        }
        for name in extra {
            if !self.has(name) {
                let (source_of, name) = (self.source.clone(), name.clone());
                return Err(ModuleError::NoExtra { source_of, name });
            }
            choice.welcome(name)?;
        }
        Ok(choice.chosen)
    }

    /// Whether a module is there, as a file or built in.
    fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.packed.contains_key(&name) || self.builtin.contains(&name)
    }

    fn unpack(&self, packed: &Packed, release: &str) -> Result<(Vec<u8>, Modinfo), ModuleError> {
        let file = || packed.file.clone();
        let unpacked = match &packed.content {
            Content::Bytes(bytes) => unpack(bytes, MAX),
            Content::File(path) => {
                let bytes = fs::read(path);
                let path = path.clone();
                unpack(&bytes.map_err(|source| ModuleError::Read { path, source })?, MAX)
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

/// What has been chosen so far.
#[derive(Debug)]
struct Choice<'a> {
    tree: &'a ModuleTree,
    release: &'a str,
    seen: BTreeSet<String>,
    chosen: Vec<Module>,
}

impl Choice<'_> {
    fn need(&mut self, name: &str, wanted_by: &str) -> Result<(), ModuleError> {
        if self.tree.has(name) {
            return self.welcome(name);
        }
        Err(ModuleError::Missing {
            source_of: self.tree.source.clone(),
            name: name.to_owned(),
            wanted_by: wanted_by.to_owned(),
        })
    }

    /// Chooses a module, after those it depends on, if it is there as a file.
    fn welcome(&mut self, name: &str) -> Result<(), ModuleError> {
        let name = canonical(name);
        let Some(packed) = self.tree.packed.get(&name) else { return Ok(()) };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let (bytes, info) = self.tree.unpack(packed, self.release)?;
        for wanted in &info.wants {
            self.welcome(wanted)?;
        }
        for dependency in &info.depends {
            self.need(dependency, &format!(" (which {name} depends on)"))?;
        }
        self.chosen.push(Module { name, bytes });
        Ok(())
    }
}

/// The canonical name of the module in `file`; nothing if it is no module.
fn module_name(file: &str) -> Option<String> {
    let mut parts = file.split('.');
    let name = parts.next().filter(|name| !name.is_empty())?;
    let rest = (parts.next()?, parts.next(), parts.next());
    let packing_known = matches!(rest, ("ko", None | Some("xz" | "zst" | "gz"), None));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (packing_known && name.bytes().all(allowed)).then(|| canonical(name))
}
