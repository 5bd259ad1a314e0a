//! File systems that several containers may share, with a reference count per mount point.

use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, mem};

use agent_api::SHARE_MOUNT;
use agent_api::agent::{Storage, Tmpfs, storage};
use nix::mount::MsFlags;
use parking_lot::Mutex;

use crate::error::{Doing, Result, invalid};
use crate::paths::{below_guest_root, make_dir};
use crate::{console, disk, mounts};

/// The mounted storages: the number of containers that use each mount point.
///
/// The lock is held across mounting and unmounting, so that a count always matches what is mounted.
/// Only blocking threads take it. A mount waits at most for its disk to appear, for
/// as long as `uevent.rs` allows; a lookup in a share waits for the host's virtiofsd, without which
/// no container of the Pod gets on either.
#[derive(Debug, Default)]
pub struct Storages(Mutex<HashMap<PathBuf, usize>>);

/// The storages that a container uses, until it is dropped.
#[derive(Debug)]
pub struct MountedStorages {
    storages: Arc<Storages>,
    mount_points: Vec<PathBuf>,
    /// Directories of a share that the host has a mount on.
    automounts: Vec<PathBuf>,
}

impl Storages {
    /// Mounts the storages that are not mounted yet and counts one user more for the others.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what the host must not ask for; a mount that fails. Those before it are
    /// released.
    pub fn mount(self: &Arc<Self>, wanted: &[Storage]) -> Result<MountedStorages> {
        // Declared before the guard: dropped after it on an error, when it locks again.
        let mut mounted = MountedStorages {
            storages: self.clone(),
            mount_points: Vec::new(),
            automounts: Vec::new(),
        };
        let mut counts = self.0.lock();
        for storage in wanted {
            mounted.mount_points.push(add(&mut counts, storage)?);
        }
        drop(counts);
        Ok(mounted)
    }
}

impl MountedStorages {
    /// Has the kernel automount the directories among `sources` that are below a share.
    ///
    /// Where the host has a mount in a share, the guest's kernel mounts a file system with its own
    /// caches on the first access, in the mount namespace of the process that makes it. If that
    /// were a container's, two containers with the same volume would not see each other's changes
    /// at once.
    ///
    /// # Errors
    ///
    /// A directory whose status cannot be read.
    pub fn automount<'a>(&mut self, sources: impl Iterator<Item = &'a Path>) -> Result<()> {
        let mut counts = self.storages.0.lock();
        for source in sources.filter(|source| source.starts_with(SHARE_MOUNT)) {
            let meta = fs::metadata(source)
                .doing(|| format!("reading the status of {}", source.display()))?;
            if meta.is_dir() && !self.automounts.iter().any(|known| known == source) {
                let inside = source.join(".");
                fs::metadata(&inside)
                    .doing(|| format!("reading the status of {}", inside.display()))?;
                *counts.entry(source.to_owned()).or_insert(0) += 1;
                self.automounts.push(source.to_owned());
            }
        }
        Ok(())
    }
}

impl Drop for MountedStorages {
    fn drop(&mut self) {
        let mut counts = self.storages.0.lock();
        for point in mem::take(&mut self.mount_points).into_iter().rev() {
            if release(&mut counts, &point) {
                if let Err(error) = mounts::unmount(&point) {
                    console::log_error(&error.to_string());
                }
                let _ = fs::remove_dir(&point);
            }
        }
        for point in mem::take(&mut self.automounts).into_iter().rev() {
            if release(&mut counts, &point) {
                if let Err(error) = mounts::unmount(&point) {
                    console::log_error(&error.to_string());
                }
            }
        }
    }
}

/// Counts one user less. Returns whether it was the last.
fn release(counts: &mut HashMap<PathBuf, usize>, point: &Path) -> bool {
    let count = counts.entry(point.to_owned()).or_insert(1);
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(point);
    }
    last
}

fn add(counts: &mut HashMap<PathBuf, usize>, storage: &Storage) -> Result<PathBuf> {
    let point = below_guest_root("a storage's mount point", &storage.mount_point)?;
    if let Some(count) = counts.get_mut(&point) {
        *count += 1;
        return Ok(point);
    }
    match &storage.kind {
        Some(storage::Kind::Tmpfs(tmpfs)) => mount_tmpfs(tmpfs, &point)?,
        Some(storage::Kind::Disk(disk)) => disk::mount(disk, &point, false)?,
        // Absent, or a kind of a newer protocol.
        _ => {
            return Err(invalid(format!("storage {} is neither tmpfs nor disk", point.display())));
        }
    }
    counts.insert(point.clone(), 1);
    Ok(point)
}

fn mount_tmpfs(tmpfs: &Tmpfs, point: &Path) -> Result<()> {
    make_dir(point)?;
    let mut data = format!("mode={:o}", tmpfs.mode & 0o7777);
    if tmpfs.size > 0 {
        data.push_str(&format!(",size={}", tmpfs.size));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mounts::mount("tmpfs", point, "tmpfs", flags, &data)?;
    chown(point, Some(tmpfs.uid), Some(tmpfs.gid))
        .and_then(|()| {
            // chown clears the set-group-ID bit.
            fs::set_permissions(point, fs::Permissions::from_mode(tmpfs.mode & 0o7777))
        })
        .doing(|| {
            format!("setting the owner of {} to {}:{}", point.display(), tmpfs.uid, tmpfs.gid)
        })
        .inspect_err(|_| drop(mounts::unmount(point)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_releases_a_mount_point() {
        let point = Path::new("/run/bulkhead/volumes/a");
        let mut counts = HashMap::from([(point.to_owned(), 2)]);
        assert!(!release(&mut counts, point));
        assert!(release(&mut counts, point));
        assert!(counts.is_empty());
    }

    #[test]
    fn a_storage_is_below_the_guests_root() {
        let outside = Storage { mount_point: "/etc".into(), ..Storage::default() };
        let error = Arc::new(Storages::default()).mount(&[outside]).unwrap_err().to_string();
        assert_eq!(error, "a storage's mount point \"/etc\" is not below /run/bulkhead");
    }
}
