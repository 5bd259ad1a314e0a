//! The user that a VM's processes run as: one for each VM, which owns nothing else on the host and
//! needs no entry in `/etc/passwd`.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::DriverError;
use crate::vmm::VmPlan;

/// UIDs that no system allocates: systemd's "Users, Groups, UIDs and GIDs" lists those from
/// 0x7000_0000 to 0x7fff_ffff as unused.
const FIRST: u32 = 0x7000_0000;
const COUNT: u32 = 0x0fff_fff0;

/// KVM's device node.
pub(crate) const KVM: &str = "/dev/kvm";

/// The UID of the VM in `dir`, which is also its GID.
pub fn vm_user(dir: &Path) -> u32 {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    FIRST + digest.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte)) % COUNT
}

/// Changes the owner of `path` to `user`; `None` leaves it.
pub fn chown(path: &Path, user: Option<u32>) -> io::Result<()> {
    match user {
        Some(user) => lchown(path, Some(user), Some(user)),
        None => Ok(()),
    }
}

/// The group that may use KVM, if there is one.
pub(crate) fn kvm_group() -> Option<u32> {
    let kvm = fs::metadata(KVM).ok().filter(|kvm| kvm.mode() & 0o060 == 0o060);
    // Group root would grant more than that.
    kvm.map(|kvm| kvm.gid()).filter(|group| *group != 0)
}

/// Rejects a KVM that the VM's user cannot open.
pub(crate) fn check_kvm(vm: &VmPlan) -> Result<(), DriverError> {
    if vm.user.is_none() {
        return Ok(());
    }
    match fs::metadata(KVM) {
        Ok(kvm) if !world_accessible(&kvm) && kvm_group().is_none() => Err(DriverError::Kvm(
            format!(
                "{KVM} is accessible to root only (mode {:o}, group {})",
                kvm.mode() & 0o777,
                kvm.gid()
            ),
            "give a group of its own access, as udev's rules do (chgrp kvm /dev/kvm; chmod 660 \
             /dev/kvm), or set monitor_as_root = true",
        )),
        // A missing /dev/kvm is reported when it is opened.
        _ => Ok(()),
    }
}

fn world_accessible(device: &Metadata) -> bool {
    device.mode() & 0o006 == 0o006
}

/// Rejects a file that is not world-readable, since the VM's user could not read it.
pub(crate) fn check_readable(field: &'static str, path: &Path) -> Result<(), DriverError> {
    let closed = |path: &Path, bit| fs::metadata(path).is_ok_and(|found| found.mode() & bit == 0);
    let way = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
    if closed(path, 0o004) || way.into_iter().any(|dir| closed(dir, 0o001)) {
        let fix = "make it world-readable and its directories searchable (chmod o+r, o+x), or \
                    set monitor_as_root = true";
        return Err(DriverError::Plan { field, value: path.display().to_string(), fix });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn every_vm_has_a_user_of_its_own() {
        let [one, other] = ["/run/bulkhead/vm/a", "/run/bulkhead/vm/b"].map(Path::new).map(vm_user);
        assert_ne!(one, other);
        for user in [one, other] {
            assert!((FIRST..0x7fff_ffff).contains(&user), "{user:x}");
        }
        assert_eq!(one, vm_user(Path::new("/run/bulkhead/vm/a")));
    }

    #[test]
    fn a_file_that_only_root_can_read_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinux");
        fs::write(&file, "").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&file, 0o644);
        mode(dir.path(), 0o700);
        let refused = check_readable("kernel", &file).unwrap_err().to_string();
        assert!(
            refused.starts_with(&format!("vm.kernel = {}: make it world-readable", file.display()))
        );
        mode(dir.path(), 0o711);
        check_readable("kernel", &file).unwrap();
        mode(&file, 0o640);
        check_readable("kernel", &file).unwrap_err();
    }
}
