//! Opening files that nobody but root may have made.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::GuestError;

/// The command that makes the image `dir`.
pub(crate) fn mend(dir: &Path) -> String {
    format!("bulkhead guest build --output {}", dir.display())
}

/// Whether only root, or who runs this program, can change what `meta` is of.
pub(crate) fn is_trusted(meta: &Metadata) -> bool {
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    ours && meta.mode() & 0o022 == 0
}

/// Opens the plain file `name` of the image `dir` for reading, and checks that others cannot
/// change it.
pub(crate) fn open(dir: &Path, name: &str) -> Result<(File, Metadata), GuestError> {
    let path = dir.join(name);
    let wrong = |found| GuestError::Type {
        path: path.clone(),
        found,
        expected: "a plain file",
        mend: mend(dir),
    };
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => GuestError::Missing { path: path.clone(), mend: mend(dir) },
        Some(libc::ELOOP) => wrong("a symbolic link"),
        _ => GuestError::Io { verb: "open", path: path.clone(), source },
    };
    // Not to wait for the writer of a fifo.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(&path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(wrong("a directory or special file"));
    }
    trust(&path, &meta)?;
    Ok((file, meta))
}

/// Refuses what others can change.
pub(crate) fn trust(path: &Path, meta: &Metadata) -> Result<(), GuestError> {
    if is_trusted(meta) {
        return Ok(());
    }
    let (uid, mode) = (meta.uid(), meta.mode() & 0o7777);
    Err(GuestError::Untrusted { path: path.to_owned(), uid, mode })
}
