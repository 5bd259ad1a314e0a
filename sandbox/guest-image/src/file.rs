//! Opens files that only root or this process's user can have written.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::GuestError;

/// The command that builds the image `dir`.
pub(crate) fn build_command(dir: &Path) -> String {
    format!("bulkhead guest build --output {}", dir.display())
}

/// Whether only root or this process's user can change the file or directory with this status.
pub(crate) fn is_trusted(meta: &Metadata) -> bool {
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    ours && meta.mode() & 0o022 == 0
}

/// Opens the regular file `name` of the image `dir` for reading, and checks that others cannot
/// change it.
pub(crate) fn open(dir: &Path, name: &str) -> Result<(File, Metadata), GuestError> {
    let path = dir.join(name);
    let wrong = |found| GuestError::Type {
        path: path.clone(),
        found,
        expected: "a regular file",
        command: build_command(dir),
    };
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => {
            GuestError::Missing { path: path.clone(), command: build_command(dir) }
        }
        Some(libc::ELOOP) => wrong("a symbolic link"),
        _ => GuestError::Io { verb: "open", path: path.clone(), source },
    };
    // O_NONBLOCK: does not wait for the writer of a FIFO.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(&path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(wrong("a directory or special file"));
    }
    require_trusted(&path, &meta)?;
    Ok((file, meta))
}

/// Fails if others can change the file or directory.
pub(crate) fn require_trusted(path: &Path, meta: &Metadata) -> Result<(), GuestError> {
    if is_trusted(meta) {
        return Ok(());
    }
    let mode = meta.mode() & 0o7777;
    Err(GuestError::Untrusted { path: path.to_owned(), uid: meta.uid(), mode })
}
