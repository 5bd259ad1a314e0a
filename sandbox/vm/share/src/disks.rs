//! Disks of a VM: bound below its directory, the only place where its VMM may open files. virtiofsd
//! does not serve them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_host::{Bind, Host, OwnedBind, Propagation, ReadOnly};

use crate::error::ShareError;
use vm_driver::Disk;

/// A writable bind mount: the VMM opens read-only disks read-only.
const PLAIN: Bind =
    Bind { recursive: false, read_only: ReadOnly::No, propagation: Propagation::Private };

/// The directory of the disks of the VM in `vm`.
pub fn disks_dir(vm: &Path) -> PathBuf {
    vm.join("disks")
}

/// Binds the image or device of `disk` there under its id, owned by `user` where there is one, and
/// returns its path.
///
/// # Errors
///
/// When the source is gone or the kernel refuses the mount; nothing is left then.
pub(crate) fn bind(
    host: &dyn Host,
    vm: &Path,
    disk: &Disk,
    user: Option<u32>,
) -> Result<PathBuf, ShareError> {
    let point = disks_dir(vm).join(&disk.id);
    fs::File::create_new(&point).map_err(ShareError::io("making", &point))?;
    let bound = match user {
        Some(user) => {
            host.bind_owned(&disk.path, &point, OwnedBind { uid: user, read_only: disk.read_only })
        }
        None => host.bind(&disk.path, &point, PLAIN),
    };
    match bound {
        Ok(()) => Ok(point),
        Err(error) => {
            // The mount point created above.
            let _ = fs::remove_file(&point);
            Err(error.into())
        }
    }
}

/// Unmounts and removes it. Idempotent.
///
/// # Errors
///
/// When it cannot be unmounted or removed.
pub(crate) fn remove(host: &dyn Host, vm: &Path, id: &str) -> Result<(), ShareError> {
    let point = disks_dir(vm).join(id);
    host.unmount_all(&point)?;
    match fs::remove_file(&point) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ShareError::io("removing", &point)(error))
        }
        _ => Ok(()),
    }
}
