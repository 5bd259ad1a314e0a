//! Puts a finished image in place.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;

use crate::manifest::MANIFEST;

/// An error of putting an image in place.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A file operation failed.
    #[error("cannot {verb} {path}")]
    Io {
        /// The operation.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path exists and is not an image.
    #[error(
        "{0} exists and is not a guest image, so it is not replaced: remove it, or use another --output"
    )]
    Foreign(PathBuf),
    /// The path has no parent directory or name.
    #[error("{0} cannot be the image's directory; use the path of a directory that can be created")]
    InvalidPath(PathBuf),
}

/// A temporary directory beside the image's, removed when dropped before it is published.
#[derive(Debug)]
pub(super) struct NewDir(TempDir);

impl NewDir {
    /// Creates one beside `output`, and `output`'s parents.
    pub(super) fn beside(output: &Path) -> Result<Self, PublishError> {
        let io = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::Io { verb, path, source }
        };
        let absolute = std::path::absolute(output).map_err(io("find", output))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(PublishError::InvalidPath(output.to_owned()));
        };
        replaceable(&absolute)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(io("create the directory", parent))?;
        let prefix = format!(".{}.new-", name.to_string_lossy());
        let new = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(io("create a directory in", parent))?;
        // The umask applies to mkdir, but not to chmod.
        fs::set_permissions(new.path(), Permissions::from_mode(0o755))
            .map_err(io("set the permissions of", new.path()))?;
        Ok(Self(new))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file and syncs it to disk.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let path = self.path().join(name);
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .and_then(|mut file| {
                file.set_permissions(Permissions::from_mode(0o644))?;
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(|source| PublishError::Io { verb: "write", path, source })
    }

    /// Replaces `output` atomically and removes the previous image.
    pub(super) fn publish(self, output: &Path) -> Result<(), PublishError> {
        let failed = |source| PublishError::Io {
            verb: "put the image in place at",
            path: output.to_owned(),
            source,
        };
        let new = self.path().to_owned();
        if replaceable(output)? {
            match exchange(&new, output) {
                // The previous image is now the temporary directory.
                Ok(()) => {
                    return self.0.close().map_err(|source| PublishError::Io {
                        verb: "remove the previous image",
                        path: new,
                        source,
                    });
                }
                // The file system cannot exchange names: for a moment there is no image.
                Err(Errno::EINVAL | Errno::ENOSYS) => {
                    fs::remove_dir_all(output).map_err(failed)?;
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        fs::rename(&new, output).map_err(failed)?;
        // It was renamed, so it must not be removed.
        let _moved = self.0.keep();
        Ok(())
    }
}

fn exchange(new: &Path, output: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, new, AT_FDCWD, output, RenameFlags::RENAME_EXCHANGE)
}

/// Whether `output` exists. Fails if it is neither an image nor an empty directory.
fn replaceable(output: &Path) -> Result<bool, PublishError> {
    let foreign = || PublishError::Foreign(output.to_owned());
    let failed =
        |source| PublishError::Io { verb: "read the status of", path: output.to_owned(), source };
    match fs::symlink_metadata(output) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed(source)),
        Ok(meta) if !meta.is_dir() => Err(foreign()),
        Ok(_) => {
            let empty = fs::read_dir(output).map_err(failed)?.next().is_none();
            if empty || output.join(MANIFEST).is_file() { Ok(true) } else { Err(foreign()) }
        }
    }
}
