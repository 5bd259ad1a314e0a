//! Volumes of the host below the share: all containers of a Pod share one mount of the same volume.
//! A guest's caches of names, pages and locks are per mount, and those of two would differ.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use sandbox_core::Id;

use crate::error::ShareError;
use crate::tree::{Tree, Volume};

/// The mounted volumes of a Pod and the containers that use them.
#[derive(Debug, Default)]
pub struct Volumes {
    mounted: Vec<Mounted>,
}

#[derive(Debug)]
struct Mounted {
    volume: Volume,
    /// Device and inode: another file at the same path is another volume.
    file: (u64, u64),
    users: BTreeSet<Id>,
}

impl Volumes {
    /// Mounts `volume` for `container`, unless the Pod has it already, and returns its name.
    ///
    /// It borrows all volumes while it mounts one: two containers that are created at once must not
    /// mount the same volume twice. Its two steps take at most 60 s each, after which a stalled
    /// file system fails the container.
    ///
    /// # Errors
    ///
    /// When the source is gone, the kernel refuses, or a file system does not answer in time.
    pub async fn acquire(
        &mut self,
        tree: &Tree,
        container: &Id,
        volume: Volume,
    ) -> Result<String, ShareError> {
        let source = volume.source.clone();
        let meta = tree.bounded(container, move |_| {
            fs::metadata(&source).map_err(ShareError::io("reading", &source))
        });
        let file = identity(&meta.await?);
        let same = |there: &&mut Mounted| {
            there.file == file
                && there.volume.source == volume.source
                && there.volume.how == volume.how
        };
        if let Some(there) = self.mounted.iter_mut().find(same) {
            there.users.insert(container.clone());
            return Ok(there.volume.name.clone());
        }
        let wanted = volume.clone();
        tree.bounded(container, move |tree| tree.add_volume(&wanted)).await?;
        let name = volume.name.clone();
        let users = BTreeSet::from([container.clone()]);
        self.mounted.push(Mounted { volume, file, users });
        Ok(name)
    }

    /// Unmounts what only `container` uses. Idempotent.
    ///
    /// # Errors
    ///
    /// The first failure to unmount or remove a mount point; all other steps are done nevertheless,
    /// and the next release tries again.
    pub fn release(&mut self, tree: &Tree, container: &Id) -> Result<(), ShareError> {
        let mut result = Ok(());
        self.mounted.retain_mut(|there| {
            there.users.remove(container);
            if !there.users.is_empty() {
                return true;
            }
            let removed = tree.remove_volume(&there.volume.name);
            let stays = removed.is_err();
            result = std::mem::replace(&mut result, Ok(())).and(removed);
            stays
        });
        result
    }
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
