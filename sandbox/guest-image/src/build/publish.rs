//! Putting a finished image in place.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;

use crate::MANIFEST;

/// Why an image could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The file system refused.
    #[error("cannot {verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something else is there.
    #[error(
        "{0} is there and is no guest image; it is not replaced: remove it, or give another --output"
    )]
    Foreign(PathBuf),
    /// It is no place for a directory.
    #[error("{0} cannot be the image's directory; give the path of a directory that can be made")]
    NoPlace(PathBuf),
}

/// A directory beside the place where it will be; gone when it is dropped before.
#[derive(Debug)]
pub(super) struct NewDir(TempDir);

impl NewDir {
    /// Makes one beside `output`, whose parents are made too.
    pub(super) fn beside(output: &Path) -> Result<Self, PublishError> {
        let io = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::Io { verb, path, source }
        };
        let absolute = std::path::absolute(output).map_err(io("find", output))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(PublishError::NoPlace(output.to_owned()));
        };
        replaceable(&absolute)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(io("make the directory", parent))?;
        let prefix = format!(".{}.new-", name.to_string_lossy());
        let made = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(io("make a directory in", parent))?;
        // The mask of this process has a say in what is made, but not in this.
        fs::set_permissions(made.path(), Permissions::from_mode(0o755))
            .map_err(io("set the permissions of", made.path()))?;
        Ok(Self(made))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file and waits until it is on the disk.
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

    /// Takes the place of `output` in one step, and removes the image that was there.
    pub(super) fn publish(self, output: &Path) -> Result<(), PublishError> {
        let failed = |source| PublishError::Io {
            verb: "put the image in place at",
            path: output.to_owned(),
            source,
        };
        let new = self.path().to_owned();
        if replaceable(output)? {
            match exchange(&new, output) {
                // What was there is now the temporary directory.
                Ok(()) => {
                    return self.0.close().map_err(|source| PublishError::Io {
                        verb: "remove the former image",
                        path: new,
                        source,
                    });
                }
                // File systems that cannot exchange: then there is a moment without an image.
                Err(Errno::EINVAL | Errno::ENOSYS) => {
                    fs::remove_dir_all(output).map_err(failed)?;
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        fs::rename(&new, output).map_err(failed)?;
        // It is the image now, and not to be removed.
        let _moved = self.0.keep();
        Ok(())
    }
}

fn exchange(new: &Path, output: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, new, AT_FDCWD, output, RenameFlags::RENAME_EXCHANGE)
}

/// Whether something is at `output`; an error if it is neither an image nor an empty directory.
fn replaceable(output: &Path) -> Result<bool, PublishError> {
    let foreign = || PublishError::Foreign(output.to_owned());
    let failed = |source| PublishError::Io { verb: "look at", path: output.to_owned(), source };
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
