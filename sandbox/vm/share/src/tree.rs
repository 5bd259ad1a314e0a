//! The shared directory and the mounts below it, which can be undone from their names alone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::{Id, RootfsMount};
use sandbox_host::{Bind, Host, Propagation, ReadOnly};

use crate::disks;
use crate::error::ShareError;
use vm_driver::Disk;

/// Deadline for the mounts of one container: a volume's server may not answer.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// A root file system to mount below a container's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMount {
    /// Its name there: letters and digits.
    pub name: String,
    /// What is mounted.
    pub what: Shared,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    /// As the snapshotter described it, each mount on the one before.
    Rootfs(Vec<RootfsMount>),
    /// A directory of the host that is already mounted.
    Path {
        /// The directory.
        source: PathBuf,
        /// How it is bound.
        how: Bind,
    },
}

/// A file or directory of the host to mount for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name below the share, unless the Pod has mounted it already: letters and digits. Names are
    /// never reused, since a guest may cache what had the name before.
    pub name: String,
    /// The file or directory.
    pub source: PathBuf,
    /// How it is bound.
    pub how: Bind,
}

/// The directory of the volumes below the share; no container has such a name (see [`Id`]).
pub const VOLUMES: &str = ".volumes";

/// The shared directory of a Pod, below the Pod's own directory.
#[derive(Debug, Clone)]
pub struct Tree {
    host: Arc<dyn Host>,
    dir: PathBuf,
    /// Where mount points are created; not served.
    backing: PathBuf,
    /// The same directory as virtiofsd sees it.
    served: PathBuf,
}

impl Tree {
    /// The tree below `dir`, which may not exist.
    pub fn at(host: Arc<dyn Host>, dir: &Path) -> Self {
        Self { host, dir: dir.to_owned(), backing: dir.join("backing"), served: dir.join("share") }
    }

    /// Creates the tree below the existing directory `dir`. On failure nothing is left.
    ///
    /// # Errors
    ///
    /// When a directory exists already, or the kernel refuses the mount.
    pub fn create(host: Arc<dyn Host>, dir: &Path) -> Result<Self, ShareError> {
        let tree = Self::at(host, dir);
        let how =
            Bind { recursive: false, read_only: ReadOnly::Top, propagation: Propagation::Shared };
        // An existing tree must stay: only what is created from here on is undone.
        make_dir(&tree.backing)?;
        let made = make_dir(&tree.served)
            .and_then(|()| Ok(tree.host.bind(&tree.backing, &tree.served, how)?));
        match made {
            Ok(()) => Ok(tree),
            Err(error) => Err(undone(error, tree.destroy())),
        }
    }

    /// Binds the image or device of `disk` where the VMM may open it, and returns that path.
    ///
    /// # Errors
    ///
    /// When the source is gone or the kernel refuses the mount.
    pub fn bind_disk(&self, disk: &Disk, user: Option<u32>) -> Result<PathBuf, ShareError> {
        disks::bind(&*self.host, &self.dir, disk, user)
    }

    /// Undoes [`Tree::bind_disk`]. Idempotent.
    ///
    /// # Errors
    ///
    /// When it cannot be unmounted or removed.
    pub fn remove_disk(&self, id: &str) -> Result<(), ShareError> {
        disks::remove(&*self.host, &self.dir, id)
    }

    /// The Pod's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What virtiofsd serves.
    pub(crate) fn served(&self) -> &Path {
        &self.served
    }

    /// Makes the mounts of `container`. On failure none of them is left.
    ///
    /// # Errors
    ///
    /// When a source is gone, the kernel refuses, or a file system does not answer in time.
    pub async fn mount(&self, container: &Id, mounts: Vec<SharedMount>) -> Result<(), ShareError> {
        let id = container.clone();
        self.bounded(container, move |tree| tree.mount_now(&id, &mounts)).await
    }

    /// Runs `work`, which may block on a file system, for `container`.
    pub(crate) async fn bounded<T: Send + 'static>(
        &self,
        container: &Id,
        work: impl FnOnce(&Self) -> Result<T, ShareError> + Send + 'static,
    ) -> Result<T, ShareError> {
        let tree = self.clone();
        let work = tokio::task::spawn_blocking(move || work(&tree));
        match tokio::time::timeout(MOUNT_DEADLINE, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(join)) => Err(ShareError::io("mounting below", &self.served)(join.into())),
            Err(_) => Err(ShareError::Stalled {
                container: container.to_string(),
                seconds: MOUNT_DEADLINE.as_secs(),
            }),
        }
    }

    fn mount_now(&self, container: &Id, mounts: &[SharedMount]) -> Result<(), ShareError> {
        make_dir(&self.backing.join(container.as_str()))?;
        let made = mounts.iter().try_for_each(|mount| self.add(container, mount));
        made.map_err(|error| undone(error, self.remove(container)))
    }

    fn add(&self, container: &Id, mount: &SharedMount) -> Result<(), ShareError> {
        let place = Path::new(container.as_str()).join(&mount.name);
        let point = self.backing.join(&place);
        let target = self.served.join(&place);
        match &mount.what {
            Shared::Rootfs(mounts) => {
                make_dir(&point)?;
                for mount in mounts {
                    match as_bind(mount) {
                        Some(how) => self.host.bind(Path::new(&mount.source), &target, how)?,
                        None => self.host.mount(mount, &target)?,
                    }
                }
            }
            Shared::Path { source, how } => self.bind(source, &place, *how)?,
        }
        Ok(())
    }

    /// Binds a file or directory at `place`, which must not exist yet.
    fn bind(&self, source: &Path, place: &Path, how: Bind) -> Result<(), ShareError> {
        let point = self.backing.join(place);
        let metadata = fs::metadata(source).map_err(ShareError::io("reading", source))?;
        if metadata.is_dir() {
            make_dir(&point)?;
        } else {
            fs::File::create_new(&point).map_err(ShareError::io("making", &point))?;
        }
        Ok(self.host.bind(source, &self.served.join(place), how)?)
    }

    /// Mounts a volume. On failure nothing of it is left.
    pub(crate) fn add_volume(&self, volume: &Volume) -> Result<(), ShareError> {
        match make_dir(&self.backing.join(VOLUMES)) {
            Err(ShareError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            }
            made => made?,
        }
        let place = Path::new(VOLUMES).join(&volume.name);
        let bound = self.bind(&volume.source, &place, volume.how);
        bound.map_err(|error| undone(error, self.remove_volume(&volume.name)))
    }

    /// Unmounts a volume. Idempotent.
    pub(crate) fn remove_volume(&self, name: &str) -> Result<(), ShareError> {
        let place = Path::new(VOLUMES).join(name);
        self.host.unmount_all(&self.served.join(&place))?;
        remove_point(&self.backing.join(&place))
    }

    /// Unmounts everything of `container`. Idempotent, and needs names only.
    ///
    /// # Errors
    ///
    /// When something cannot be unmounted or removed.
    pub fn remove(&self, container: &Id) -> Result<(), ShareError> {
        self.host.unmount_all(&self.served.join(container.as_str()))?;
        remove_points(&self.backing.join(container.as_str()))
    }

    /// Unmounts and removes everything. Idempotent.
    ///
    /// # Errors
    ///
    /// When something cannot be unmounted or removed.
    pub fn destroy(&self) -> Result<(), ShareError> {
        self.host.unmount_all(&self.served)?;
        for container in entries(&self.backing)? {
            remove_points(&container)?;
        }
        gone(fs::remove_dir(&self.served), &self.served)?;
        gone(fs::remove_dir(&self.backing), &self.backing)
    }
}

/// How a snapshotter's mount is to be bound, if it is a bind mount.
fn as_bind(mount: &RootfsMount) -> Option<Bind> {
    let has = |option: &str| mount.options.iter().any(|present| present == option);
    let read_only = if has("ro") { ReadOnly::Top } else { ReadOnly::No };
    let bind = Bind { recursive: has("rbind"), read_only, propagation: Propagation::Private };
    (mount.kind == "bind" || has("bind") || has("rbind")).then_some(bind)
}

/// Removes the empty mount points in `dir`, and `dir`. Nothing with content is removed: if a mount
/// were still there, it would be a user's data.
fn remove_points(dir: &Path) -> Result<(), ShareError> {
    for point in entries(dir)? {
        remove_point(&point)?;
    }
    gone(fs::remove_dir(dir), dir)
}

fn remove_point(point: &Path) -> Result<(), ShareError> {
    let empty = fs::symlink_metadata(point).map(|meta| (meta.is_dir(), meta.len()));
    match empty {
        Ok((true, _)) => gone(fs::remove_dir(point), point),
        Ok((false, 0)) => gone(fs::remove_file(point), point),
        Ok((false, _)) => {
            let error = io::Error::other("it is not empty, so it is not a mount point");
            Err(ShareError::io("removing", point)(error))
        }
        Err(error) => gone(Err(error), point),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ShareError> {
    let failed = |source| ShareError::io("reading", dir)(source);
    match fs::read_dir(dir) {
        Ok(list) => {
            list.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn gone(result: io::Result<()>, path: &Path) -> Result<(), ShareError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(ShareError::io("removing", path)),
    }
}

fn make_dir(path: &Path) -> Result<(), ShareError> {
    DirBuilder::new().mode(0o700).create(path).map_err(ShareError::io("making", path))
}

/// Returns `error` after undoing its step; a failure of the undoing is logged.
fn undone(error: ShareError, undo: Result<(), ShareError>) -> ShareError {
    if let Err(left) = undo {
        tracing::warn!("undoing a failed mount: {}", sandbox_core::Error::from(left));
    }
    error
}
