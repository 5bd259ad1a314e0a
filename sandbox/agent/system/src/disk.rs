//! Block devices, found by serial number.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_api::agent::Disk;
use nix::mount::MsFlags;

use crate::error::{Doing, Result, invalid};
use crate::paths::make_dir;
use crate::{mounts, uevent};

const BLOCK: &str = "/sys/block";

/// virtio-blk's limit.
const SERIAL_MAX: usize = 20;

/// A block device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskNode {
    /// Its node in `/dev`.
    pub(crate) node: PathBuf,
    /// The major number of the device.
    pub major: u64,
    /// The minor number of the device.
    pub minor: u64,
}

/// Waits for the disk with this serial number. Blocks.
///
/// # Errors
///
/// `InvalidArgument` for what is no serial number; `DeadlineExceeded` if no such disk appears.
pub fn find_disk(serial: &str) -> Result<DiskNode> {
    let valid = (1..=SERIAL_MAX).contains(&serial.len())
        && serial.bytes().all(|b| b.is_ascii_alphanumeric());
    if !valid {
        return Err(invalid(format!(
            "disk serial {serial:?} is not 1 to {SERIAL_MAX} letters and digits"
        )));
    }
    let name = uevent::await_device(&format!("the disk {serial:?}"), || {
        Ok(by_serial(Path::new(BLOCK), serial))
    })?;
    let node = Path::new("/dev").join(&name);
    let meta = fs::metadata(&node).doing(|| format!("reading the status of {}", node.display()))?;
    let major = u64::from(libc::major(meta.rdev()));
    let minor = u64::from(libc::minor(meta.rdev()));
    Ok(DiskNode { node, major, minor })
}

fn by_serial(block: &Path, serial: &str) -> Option<String> {
    let entries = fs::read_dir(block).ok()?.flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| {
        let found = fs::read_to_string(block.join(name).join("serial"));
        found.is_ok_and(|found| found.trim_end_matches(['\n', '\0']) == serial)
    })
}

/// Creates `target` and mounts `disk` there. Blocks.
pub(crate) fn mount(disk: &Disk, target: &Path, read_only: bool) -> Result<()> {
    if !matches!(disk.fs_type.as_str(), "erofs" | "ext4" | "xfs" | "btrfs") {
        return Err(invalid(format!(
            "disk {:?}: file system {:?} is not one of erofs, ext4, xfs, btrfs",
            disk.serial, disk.fs_type
        )));
    }
    let found = find_disk(&disk.serial)?;
    make_dir(target)?;
    let (mut flags, data) = options(&disk.options);
    if read_only || disk.read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mounts::mount(&found.node.to_string_lossy(), target, &disk.fs_type, flags, &data)
}

/// Splits mount options into flags and the file system's own options.
pub(crate) fn options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags &= !MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "loop" | "defaults" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_by_its_serial() {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "layer0\n"), ("vdb", "layer01\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(dir.path().join("sr0")).unwrap();
        assert_eq!(by_serial(dir.path(), "layer01").as_deref(), Some("vdb"));
        assert_eq!(by_serial(dir.path(), "layer"), None);
    }

    #[test]
    fn a_serial_is_not_a_path() {
        let error = find_disk("../x").unwrap_err().to_string();
        assert_eq!(error, "disk serial \"../x\" is not 1 to 20 letters and digits");
    }

    #[test]
    fn flags_and_data() {
        let given = ["ro", "nodev", "data=ordered", "loop"].map(String::from);
        let (flags, data) = options(&given);
        assert_eq!(flags, MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
        assert_eq!(data, "data=ordered");
    }
}
