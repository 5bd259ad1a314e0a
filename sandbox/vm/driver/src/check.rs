//! Validation of VM plans and devices, the same for every driver.

use std::fs::{File, FileType};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::DriverError;
use crate::user::check_readable;
use crate::vmm::{Disk, Share, VmPlan};

/// Memory is plugged in by sections of this many bytes (Linux on x86-64).
pub(crate) const SECTION: u64 = 128 << 20;
/// The least memory that a kernel with an initramfs starts in, in bytes.
const MEMORY_MIN: u64 = 64 << 20;
/// The maximum number of processors.
const VCPUS_MAX: u32 = 254;
/// The longest directory: a socket's path has at most 107 bytes, and the longest name in the
/// directory is `/vsock_4294967295`.
const DIR_MAX: usize = 107 - 17;

/// Rejects plans that no driver can create a VM from.
pub(crate) fn check(vm: &VmPlan) -> Result<(), DriverError> {
    let wrong = |field, value: &dyn ToString, fix| {
        Err(DriverError::Plan { field, value: value.to_string(), fix })
    };
    let VmPlan { vcpus, max_vcpus, memory, max_memory, .. } = vm;
    if !(1..=VCPUS_MAX).contains(vcpus) {
        return wrong("vcpus", vcpus, "give 1 to 254");
    }
    if !(*vcpus..=VCPUS_MAX).contains(max_vcpus) {
        return wrong("max_vcpus", max_vcpus, "give at least vcpus and at most 254");
    }
    if *memory < MEMORY_MIN || memory % (1 << 20) != 0 {
        return wrong("memory", memory, "give whole MiB, 64 or more");
    }
    if max_memory < memory {
        return wrong("max_memory", max_memory, "give at least memory");
    }
    if max_memory > memory && (memory % SECTION != 0 || max_memory % SECTION != 0) {
        return wrong("memory", memory, "it can only grow by and from multiples of 128 MiB");
    }
    // QEMU and vhost-device-vsock split their arguments at commas.
    let plain = vm.dir.to_str().is_some_and(|dir| dir.len() <= DIR_MAX && !dir.contains(','));
    if !plain || !vm.dir.is_absolute() {
        let fix = "give an absolute path of at most 90 bytes without a comma";
        return wrong("dir", &vm.dir.display(), fix);
    }
    if vm.cmdline.contains(['\0', '\n']) {
        return wrong("cmdline", &vm.cmdline, "give one line");
    }
    Ok(())
}

/// Rejects a kernel or initramfs that no VM can boot.
pub(crate) fn check_files(vm: &VmPlan) -> Result<(), DriverError> {
    let wrong = |field, path: &Path, fix| {
        Err(DriverError::Plan { field, value: path.display().to_string(), fix })
    };
    let mut magic = [0; 4];
    match File::open(&vm.kernel).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) if magic == *b"\x7fELF" => {}
        Ok(()) => {
            return wrong("kernel", &vm.kernel, "give an uncompressed ELF kernel (vmlinux)");
        }
        Err(_) => return wrong("kernel", &vm.kernel, "give a kernel that can be read"),
    }
    if !vm.initramfs.is_file() {
        return wrong("initramfs", &vm.initramfs, "give a file that is there");
    }
    if vm.user.is_some() {
        check_readable("kernel", &vm.kernel)?;
        check_readable("initramfs", &vm.initramfs)?;
    }
    Ok(())
}

/// The file type of a disk; fails when it does not exist.
pub(crate) fn check_disk(disk: &Disk) -> Result<FileType, DriverError> {
    match std::fs::metadata(&disk.path) {
        Ok(metadata) => Ok(metadata.file_type()),
        Err(source) => {
            Err(DriverError::File { step: "opening disk", path: disk.path.clone(), source })
        }
    }
}

/// Rejects a share whose socket does not exist: a VMM may block for a minute on connecting to
/// it.
pub(crate) fn check_share(share: &Share) -> Result<(), DriverError> {
    let failed = |source| {
        let path = share.socket.clone();
        Err(DriverError::File { step: "connecting to the share's server at", path, source })
    };
    match std::fs::metadata(&share.socket) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(()),
        Ok(_) => failed(std::io::Error::other("it is not a socket")),
        Err(source) => failed(source),
    }
}

/// The hybrid vsock's socket in `dir`.
pub(crate) fn vsock(dir: &Path) -> PathBuf {
    dir.join("vsock")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn vm(dir: &Path) -> VmPlan {
        VmPlan {
            dir: dir.to_owned(),
            netns: None,
            kernel: "/boot/vmlinux".into(),
            initramfs: "/boot/initramfs".into(),
            cmdline: "quiet panic=-1".into(),
            vcpus: 1,
            max_vcpus: 2,
            memory: 2 * SECTION,
            max_memory: 4 * SECTION,
            shared_memory: false,
            user: None,
            open: Vec::new(),
            console: None,
        }
    }

    #[test]
    fn rejects_invalid_plans() {
        let fine = vm(Path::new("/run/m"));
        check(&fine).unwrap();
        check(&VmPlan { memory: 65 << 20, max_memory: 65 << 20, ..fine.clone() }).unwrap();
        let wrong = [
            VmPlan { vcpus: 0, ..fine.clone() },
            VmPlan { max_vcpus: 300, ..fine.clone() },
            VmPlan { vcpus: 3, ..fine.clone() },
            VmPlan { memory: 1 << 20, ..fine.clone() },
            VmPlan { memory: 200 << 20, ..fine.clone() },
            VmPlan { max_memory: SECTION, ..fine.clone() },
            VmPlan { dir: "m".into(), ..fine.clone() },
            VmPlan { dir: "/run/a,b".into(), ..fine.clone() },
            VmPlan { dir: Path::new("/").join("x".repeat(90)), ..fine.clone() },
            VmPlan { cmdline: "a\nb".into(), ..fine.clone() },
        ];
        for vm in wrong {
            assert!(check(&vm).is_err(), "{vm:?}");
        }
        let none = VmPlan { kernel: "/no/such/kernel".into(), ..fine.clone() };
        assert!(check_files(&none).unwrap_err().to_string().contains("that can be read"));
        let packed = VmPlan { kernel: "/etc/passwd".into(), ..fine.clone() };
        assert!(check_files(&packed).unwrap_err().to_string().contains("uncompressed"));
        let error = check(&VmPlan { vcpus: 0, ..fine }).unwrap_err();
        assert_eq!(error.to_string(), "vm.vcpus = 0: give 1 to 254");
    }
}
