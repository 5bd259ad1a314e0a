//! The files of the host that a VM's processes may use.

use std::path::{Path, PathBuf};

use sandbox_host::{Paths, find_program};

use crate::user;
use crate::vmm::VmPlan;

/// What every program reads: programs, libraries and their data, /proc and /sys.
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

/// Devices that every program may use; none of them holds data.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// The files that the processes of a VM may use.
pub(crate) fn paths(vm: &VmPlan) -> Paths {
    let boots = [&vm.kernel, &vm.initramfs];
    Paths {
        read: SYSTEM.map(PathBuf::from).iter().chain(boots).cloned().collect(),
        files: DEVICES.map(PathBuf::from).iter().chain(&vm.open).cloned().collect(),
        write: vec![vm.dir.clone()],
    }
}

/// The files that `programs` read, besides those of their VM: they have to exist in the mount
/// namespace that VMs run in.
pub fn system_files<'a>(programs: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let found = programs.filter_map(find_program).flat_map(installed);
    SYSTEM.iter().chain(&DEVICES).chain([&user::KVM]).map(PathBuf::from).chain(found).collect()
}

/// A program, and the prefix that it and its data are installed in.
pub(crate) fn installed(program: PathBuf) -> Vec<PathBuf> {
    let program = program.canonicalize().unwrap_or(program);
    let bin = program.parent().filter(|dir| dir.ends_with("bin"));
    let prefix = bin.and_then(Path::parent).filter(|prefix| *prefix != Path::new("/"));
    prefix.map(Path::to_owned).into_iter().chain([program.clone()]).collect()
}
