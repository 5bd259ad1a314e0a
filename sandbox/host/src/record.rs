//! Small state files, written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Classified, Error, Kind};

/// A state file that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file operation failed.
    #[error("{verb} {path}")]
    Io {
        /// `writing` or `reading`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It is not the JSON that was written.
    #[error("{path} is damaged; remove the container to clear it")]
    Content {
        /// The file.
        path: PathBuf,
        /// Position and cause.
        source: serde_json::Error,
    },
}

impl Classified for RecordError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

/// Writes `value` as JSON to `path` with mode 0600: a new file beside it, then a rename, so that
/// a reader sees the old content or the new one.
///
/// # Errors
///
/// [`RecordError::Io`] names the file, which then has its old content.
pub fn store<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let failed = |source| RecordError::Io { verb: "writing", path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
    write_atomic(path, &bytes).map_err(failed)
}

/// Replaces the content of `path` atomically; the file has mode 0600.
///
/// # Errors
///
/// That of the file operation; `path` then has its old content.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let written = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Best effort: it may not exist, and the next write truncates it.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// The path in the directory `cache` for facts about `file`. It changes with the file's identity,
/// size and modification time, so that facts about a replaced file are not found.
///
/// # Errors
///
/// When the file's metadata cannot be read.
pub fn cache_path(cache: &Path, prefix: &str, file: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(file)?;
    let changed = meta.mtime();
    let nanos = meta.mtime_nsec();
    let name =
        format!("{prefix}-{}-{}-{changed}.{nanos}-{}.json", meta.dev(), meta.ino(), meta.size());
    Ok(cache.join(name))
}

/// As [`store`], for values that can be determined again: it creates the directory, and only logs
/// an error.
pub fn cache<T: Serialize>(path: &Path, value: &T) {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    let failed = |source| RecordError::Io { verb: "writing", path: path.to_owned(), source };
    if let Err(error) = made.map_err(failed).and_then(|()| store(path, value)) {
        tracing::warn!("not cached: {}", Error::from(error));
    }
}

/// Reads what [`store`] wrote; `None` if the file is not there.
///
/// # Errors
///
/// [`RecordError`] names the file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| RecordError::Content { path: path.to_owned(), source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Io { verb: "reading", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_distinguishes_absent_from_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(load::<Vec<u32>>(&path).unwrap(), None);
        store(&path, &vec![1u32, 2]).unwrap();
        assert_eq!(load::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, "[1,").unwrap();
        assert!(matches!(load::<Vec<u32>>(&path), Err(RecordError::Content { .. })));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "the temporary file was not removed"
        );
    }
}
