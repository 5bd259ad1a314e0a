//! What of the host's file system a VM's processes may use.

use std::path::{Path, PathBuf};

use sandbox_core::host::{Paths, find_program};

use crate::user;
use crate::vmm::Machine;

/// What every program reads: itself, its libraries and data, and what the kernel tells.
const SYSTEM: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/proc",
    "/sys",
];

/// Devices that every program works with; none of them holds anybody's data.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What of the file system a machine's processes may use.
pub(crate) fn paths(machine: &Machine) -> Paths {
    let boots = [&machine.kernel, &machine.initramfs];
    Paths {
        read: SYSTEM.map(PathBuf::from).iter().chain(boots).cloned().collect(),
        files: DEVICES.map(PathBuf::from).iter().chain(&machine.open).cloned().collect(),
        write: vec![machine.dir.clone()],
    }
}

/// What `programs` and those of the system read, besides what is a machine's own.
pub fn files<'a>(programs: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let found = programs.filter_map(find_program).flat_map(installed);
    SYSTEM.iter().chain(&DEVICES).chain([&user::KVM]).map(PathBuf::from).chain(found).collect()
}

/// A program, and the prefix that it was installed in with its data.
pub(crate) fn installed(program: PathBuf) -> Vec<PathBuf> {
    let program = program.canonicalize().unwrap_or(program);
    let bin = program.parent().filter(|dir| dir.ends_with("bin"));
    let prefix = bin.and_then(Path::parent).filter(|prefix| *prefix != Path::new("/"));
    prefix.map(Path::to_owned).into_iter().chain([program.clone()]).collect()
}
