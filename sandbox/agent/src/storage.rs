//! File systems that several containers may share, counted by mount point.

use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, mem};

use agent_api::agent::{Storage, Tmpfs, storage};
use agent_api::{GUEST_ROOT, SHARE_MOUNT};
use nix::mount::MsFlags;

use crate::boot::make_dir;
use crate::error::{Doing, Result, invalid};
use crate::{console, disk, door};

/// The mounted storages.
#[derive(Debug, Default)]
pub(crate) struct Storages(Mutex<HashMap<PathBuf, usize>>);

/// A container's share in its storages; it gives them back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    of: std::sync::Arc<Storages>,
    points: Vec<PathBuf>,
    /// Directories of a share that were walked into.
    walked: Vec<PathBuf>,
}

impl Storages {
    /// Mounts what is not mounted yet and counts the rest. Blocks; one at a time, so that two
    /// containers never mount the same point twice.
    pub(crate) fn hold(self: &std::sync::Arc<Self>, wanted: &[Storage]) -> Result<Held> {
        let mut held = Held { of: self.clone(), points: Vec::new(), walked: Vec::new() };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for storage in wanted {
            let added = add(&mut counts, storage);
            match added {
                Ok(point) => held.points.push(point),
                Err(error) => {
                    drop(counts);
                    return Err(error);
                }
            }
        }
        Ok(held)
    }
}

impl Held {
    /// Walks into the directories among `sources` that are below a share, and counts them.
    ///
    /// Where the host has a mount, the guest's kernel mounts a file system with caches of its own
    /// when somebody walks in, in the mount namespace of whoever does. Were that a container, two
    /// that have the same volume would not see each other's changes at once.
    pub(crate) fn walk<'a>(&mut self, sources: impl Iterator<Item = &'a Path>) -> Result<()> {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        for source in sources.filter(|source| source.starts_with(SHARE_MOUNT)) {
            let meta = fs::metadata(source).doing(|| format!("looking at {}", source.display()))?;
            if meta.is_dir() && !self.walked.iter().any(|walked| walked == source) {
                let inside = source.join(".");
                fs::metadata(&inside).doing(|| format!("looking at {}", inside.display()))?;
                *counts.entry(source.to_owned()).or_insert(0) += 1;
                self.walked.push(source.to_owned());
            }
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        for point in mem::take(&mut self.points).into_iter().rev() {
            if is_last(&mut counts, &point) {
                if let Err(error) = door::unmount(&point) {
                    console::error(&error.to_string());
                }
                let _ = fs::remove_dir(&point);
            }
        }
        for point in mem::take(&mut self.walked).into_iter().rev() {
            if !is_last(&mut counts, &point) {
                continue;
            }
            if let Err(error) = door::unmount(&point) {
                console::error(&error.to_string());
            }
        }
    }
}

/// Counts one user less; whether that was the last.
fn is_last(counts: &mut HashMap<PathBuf, usize>, point: &Path) -> bool {
    let count = counts.entry(point.to_owned()).or_insert(1);
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(point);
    }
    last
}

fn add(counts: &mut HashMap<PathBuf, usize>, storage: &Storage) -> Result<PathBuf> {
    let point = guest_path("a storage's mount point", &storage.mount_point)?;
    if let Some(count) = counts.get_mut(&point) {
        *count += 1;
        return Ok(point);
    }
    match &storage.kind {
        Some(storage::Kind::Tmpfs(tmpfs)) => mount_tmpfs(tmpfs, &point)?,
        Some(storage::Kind::Disk(disk)) => disk::mount(disk, &point, false)?,
        // A kind of a newer protocol.
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
    door::mount("tmpfs", point, "tmpfs", flags, &data)?;
    chown(point, Some(tmpfs.uid), Some(tmpfs.gid))
        .and_then(|()| {
            // chown takes set-group-id away.
            fs::set_permissions(point, fs::Permissions::from_mode(tmpfs.mode & 0o7777))
        })
        .doing(|| format!("giving {} to {}:{}", point.display(), tmpfs.uid, tmpfs.gid))
        .inspect_err(|_| drop(door::unmount(point)))
}

/// `path` when it is absolute, below the place that is the host's to name, and without `..`.
pub(crate) fn guest_path(what: &str, path: &str) -> Result<PathBuf> {
    let checked = Path::new(path);
    let below = checked.strip_prefix(GUEST_ROOT).is_ok_and(|rest| {
        rest.components().next().is_some()
            && rest.components().all(|part| matches!(part, Component::Normal(_)))
    });
    match below {
        true => Ok(checked.to_owned()),
        false => Err(invalid(format!("{what} {path:?} is not below {GUEST_ROOT}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_guests_root() {
        assert!(guest_path("it", "/run/bulkhead/volumes/a").is_ok());
        for path in ["/run/bulkhead", "/run/bulkhead/../x", "run/bulkhead/a", "/etc", ""] {
            let error = guest_path("it", path).unwrap_err().to_string();
            assert_eq!(error, format!("it {path:?} is not below /run/bulkhead"));
        }
    }
}
