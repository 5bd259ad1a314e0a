//! Disks of a machine: bound below its directory, where its monitor, which opens no file elsewhere,
//! finds them. They are not served to the guest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_core::host::{Bind, Host, Loan, Propagation, ReadOnly};

use crate::error::ShareError;
use vm_driver::Disk;

/// The mount itself; what it is made read-only by is the monitor's opening of it.
const PLAIN: Bind =
    Bind { recursive: false, read_only: ReadOnly::No, propagation: Propagation::Private };

/// Where the disks of the machine at `machine` are.
pub fn dir(machine: &Path) -> PathBuf {
    machine.join("disks")
}

/// Puts the image or device of `disk` there under its id, `user`'s where that is not root, and
/// gives its path.
///
/// # Errors
///
/// When the source is gone or the kernel refuses; nothing is left then.
pub(crate) fn lend(
    host: &dyn Host,
    machine: &Path,
    disk: &Disk,
    user: Option<u32>,
) -> Result<PathBuf, ShareError> {
    let point = dir(machine).join(&disk.id);
    fs::File::create_new(&point).map_err(ShareError::io("making", &point))?;
    let lent = match user {
        Some(user) => {
            host.lend(&disk.path, &point, Loan { owner: user, read_only: disk.read_only })
        }
        None => host.bind(&disk.path, &point, PLAIN),
    };
    match lent {
        Ok(()) => Ok(point),
        Err(error) => {
            // Empty, and made just now.
            let _ = fs::remove_file(&point);
            Err(error.into())
        }
    }
}

/// Takes it away again. Idempotent.
///
/// # Errors
///
/// When it stays.
pub(crate) fn take_back(host: &dyn Host, machine: &Path, id: &str) -> Result<(), ShareError> {
    let point = dir(machine).join(id);
    host.unmount_all(&point)?;
    match fs::remove_file(&point) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ShareError::io("removing", &point)(error))
        }
        _ => Ok(()),
    }
}
