//! Volumes of the host below the share: one mount for all containers of a Pod that have the same
//! one. A guest keeps a cache of names, pages and locks per mount, and two would differ.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use sandbox_core::Id;

use crate::error::ShareError;
use crate::tree::{Tree, Volume};

/// The volumes of a Pod, and who has them.
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
    /// Mounts `volume` for `container`, if the Pod has not got it, and gives its name.
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
        let (name, users) = (volume.name.clone(), BTreeSet::from([container.clone()]));
        self.mounted.push(Mounted { volume, file, users });
        Ok(name)
    }

    /// Takes down what no container but `container` has. Idempotent.
    ///
    /// # Errors
    ///
    /// The first fault, when a mount or its mount point stays; every step is done nevertheless,
    /// and the next release tries what has stayed again.
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
