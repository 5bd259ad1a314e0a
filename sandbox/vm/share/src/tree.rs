//! The shared directory: what is mounted below it, and taking that down from names alone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::host::{Bind, Host, Propagation, ReadOnly};
use sandbox_core::{Id, RootfsMount};

use crate::disks;
use crate::error::ShareError;
use vm_driver::Disk;

/// How long the mounts of one container may take; a volume's server may not answer.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// A root file system to mount below a container's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMount {
    /// Its name there: letters and digits.
    pub name: String,
    /// What it is.
    pub what: Shared,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    /// As the snapshotter described it, each mount on the one before.
    Rootfs(Vec<RootfsMount>),
    /// A directory of the host where it is in place.
    Path {
        /// The directory.
        source: PathBuf,
        /// How it is bound.
        how: Bind,
    },
}

/// A file or directory of the host that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name below the share, unless the Pod has it already: letters and digits. Never given
    /// twice, for a guest may remember what had the name before.
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
    /// Where mount points are made.
    backing: PathBuf,
    /// The same directory as virtiofsd sees it.
    served: PathBuf,
}

impl Tree {
    /// The tree below `dir`, whether it is there or not.
    pub fn at(host: Arc<dyn Host>, dir: &Path) -> Self {
        let (backing, served) = (dir.join("backing"), dir.join("share"));
        Self { host, dir: dir.to_owned(), backing, served }
    }

    /// Makes the tree below the existing directory `dir`. When it fails, nothing is left.
    ///
    /// # Errors
    ///
    /// When a directory is there already, or the kernel refuses the mount.
    pub fn create(host: Arc<dyn Host>, dir: &Path) -> Result<Self, ShareError> {
        let tree = Self::at(host, dir);
        let how =
            Bind { recursive: false, read_only: ReadOnly::Top, propagation: Propagation::Shared };
        // Whoever was here before stays: only what was made from here on is undone.
        make_dir(&tree.backing)?;
        let made = make_dir(&tree.served)
            .and_then(|()| Ok(tree.host.bind(&tree.backing, &tree.served, how)?));
        match made {
            Ok(()) => Ok(tree),
            Err(error) => Err(undone(error, tree.destroy())),
        }
    }

    /// Lets the machine's monitor open the image or device of `disk`, and gives its path there.
    ///
    /// # Errors
    ///
    /// When the source is gone or the kernel refuses.
    pub fn lend_disk(&self, disk: &Disk, user: Option<u32>) -> Result<PathBuf, ShareError> {
        disks::lend(&*self.host, &self.dir, disk, user)
    }

    /// Undoes [`Tree::lend_disk`]. Idempotent.
    ///
    /// # Errors
    ///
    /// When it stays.
    pub fn take_disk_back(&self, id: &str) -> Result<(), ShareError> {
        disks::take_back(&*self.host, &self.dir, id)
    }

    /// The Pod's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What virtiofsd serves.
    pub fn served(&self) -> &Path {
        &self.served
    }

    /// Mounts what `container` needs. When it fails, nothing of it is left.
    ///
    /// # Errors
    ///
    /// When a source is gone, the kernel refuses, or a file system does not answer in time.
    pub async fn mount(&self, container: &Id, mounts: Vec<SharedMount>) -> Result<(), ShareError> {
        let id = container.clone();
        self.bounded(container, move |tree| tree.mount_now(&id, &mounts)).await
    }

    /// Does `work`, which may block on a file system, for `container`.
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
        let (point, target) = (self.backing.join(&place), self.served.join(&place));
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

    /// Binds a file or directory at `place`, where nothing is yet.
    fn bind(&self, source: &Path, place: &Path, how: Bind) -> Result<(), ShareError> {
        let point = self.backing.join(place);
        let sort = fs::metadata(source).map_err(ShareError::io("reading", source))?;
        if sort.is_dir() {
            make_dir(&point)?;
        } else {
            fs::File::create_new(&point).map_err(ShareError::io("making", &point))?;
        }
        Ok(self.host.bind(source, &self.served.join(place), how)?)
    }

    /// Mounts a volume. When it fails, nothing of it is left.
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

    /// Takes a volume down. Idempotent.
    pub(crate) fn remove_volume(&self, name: &str) -> Result<(), ShareError> {
        let place = Path::new(VOLUMES).join(name);
        self.host.unmount_all(&self.served.join(&place))?;
        remove_point(&self.backing.join(&place))
    }

    /// Takes down what was mounted for `container`. Idempotent, and needs nothing but names.
    ///
    /// # Errors
    ///
    /// When a mount or a directory stays.
    pub fn remove(&self, container: &Id) -> Result<(), ShareError> {
        self.host.unmount_all(&self.served.join(container.as_str()))?;
        remove_points(&self.backing.join(container.as_str()))
    }

    /// Takes everything down. Idempotent.
    ///
    /// # Errors
    ///
    /// When a mount or a directory stays.
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
    let has = |option: &str| mount.options.iter().any(|given| given == option);
    let read_only = if has("ro") { ReadOnly::Top } else { ReadOnly::No };
    let bind = Bind { recursive: has("rbind"), read_only, propagation: Propagation::Private };
    (mount.kind == "bind" || has("bind") || has("rbind")).then_some(bind)
}

/// Removes the empty mount points in `dir`, and it. Nothing that holds something is removed:
/// were a mount still there, it would be somebody's data.
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
            let error = io::Error::other("it is not empty, so no mount point");
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

/// The error that is told after a step was undone; a fault of the undoing goes to the log.
fn undone(error: ShareError, undo: Result<(), ShareError>) -> ShareError {
    if let Err(fault) = undo {
        tracing::warn!("undoing a failed mount: {}", sandbox_core::Error::from(fault));
    }
    error
}
