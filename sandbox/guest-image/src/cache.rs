//! Remembers verified files, so that they are not read again. The docs of
//! [`crate::Guest::verify_cached`] explain why that is sound.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::file;

/// The cache's file in the state directory.
const NAME: &str = "guest-verified.json";

/// Upper bound on cached files: those of a few images.
const MAX_ENTRIES: usize = 16;

/// Upper bound in bytes on the cache's file.
const SIZE_MAX: u64 = 64 * 1024;

/// Minimum age of a file's last change when it is read.
const SETTLED: Duration = Duration::from_secs(2);

/// A file's identity and times, which change with its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    stamp: Stamp,
    sha256: Digest,
}

/// The verified files, the newest last.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    entries: Vec<Entry>,
    changed: bool,
}

impl Stamp {
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether the last change is so long before `now` that a further one would get another time.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.ctime;
        let Ok(seconds) = u64::try_from(seconds) else { return false };
        let Ok(nanos) = u32::try_from(nanos) else { return false };
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        changed
            .and_then(|changed| now.duration_since(changed).ok())
            .is_some_and(|age| age > SETTLED)
    }
}

impl Cache {
    /// Loads the cache in `dir`. It is empty if there is none, or it cannot be trusted or read.
    pub(crate) fn load(dir: &Path) -> Self {
        let entries = read(dir).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %dir.join(NAME).display(), "not using the cache: {error}");
            }
            Vec::new()
        });
        Self { dir: dir.to_owned(), entries, changed: false }
    }

    pub(crate) fn contains(&self, stamp: &Stamp, sha256: &Digest) -> bool {
        self.entries.iter().any(|entry| entry.stamp == *stamp && entry.sha256 == *sha256)
    }

    /// Adds a verified file.
    pub(crate) fn insert(&mut self, stamp: Stamp, sha256: Digest) {
        self.entries.retain(|it| (it.stamp.dev, it.stamp.ino) != (stamp.dev, stamp.ino));
        if self.entries.len() >= MAX_ENTRIES {
            self.entries.remove(0);
        }
        self.entries.push(Entry { stamp, sha256 });
        self.changed = true;
    }

    /// Writes the cache if it has changed. Of two processes that write at once, one wins.
    pub(crate) fn store(&self) {
        if !self.changed {
            return;
        }
        if let Err(error) = self.write() {
            tracing::warn!(path = %self.dir.join(NAME).display(), "cannot write the cache: {error}");
        }
    }

    fn write(&self) -> io::Result<()> {
        // The VMM's unprivileged user passes through the directories above, which all parts share.
        if let Some(parent) = self.dir.parent() {
            DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        require_trusted(&fs::metadata(&self.dir)?)?;
        let bytes = serde_json::to_vec(&self.entries)?;
        // Each process has its own temporary file.
        let new = self.dir.join(format!("{NAME}.{}", std::process::id()));
        let written = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&new, self.dir.join(NAME)));
        if written.is_err() {
            // It may not exist.
            let _ = fs::remove_file(&new);
        }
        written
    }
}

fn read(dir: &Path) -> io::Result<Vec<Entry>> {
    require_trusted(&fs::metadata(dir)?)?;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(dir.join(NAME))?;
    let meta = file.metadata()?;
    require_trusted(&meta)?;
    if !meta.is_file() || meta.len() > SIZE_MAX {
        return Err(io::Error::other("it is not a regular file, or too large"));
    }
    let mut bytes = Vec::new();
    file.take(SIZE_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn require_trusted(meta: &Metadata) -> io::Result<()> {
    if file::is_trusted(meta) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "other users can write to it"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn stamp(ino: u64, ctime: i64) -> Stamp {
        Stamp { dev: 1, ino, size: 3, mtime: (5, 6), ctime: (ctime, 0) }
    }

    #[test]
    fn a_file_is_cached_by_stamp_and_digest() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("made/here");
        let digest = Digest::of(b"a");
        let other = Digest::of(b"b");
        let mut cache = Cache::load(&dir);
        cache.insert(stamp(1, 7), digest);
        cache.store();
        let mut cache = Cache::load(&dir);
        assert!(cache.contains(&stamp(1, 7), &digest));
        assert!(!cache.contains(&stamp(1, 7), &other), "another digest is expected now");
        assert!(!cache.contains(&stamp(1, 8), &digest), "another time");
        assert!(!cache.contains(&stamp(2, 7), &digest), "another file");
        for ino in 2..40 {
            cache.insert(stamp(ino, 7), digest);
        }
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert!(cache.contains(&stamp(39, 7), &digest));
        assert!(!cache.contains(&stamp(1, 7), &digest));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file remains");
    }

    #[test]
    fn a_cache_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let dir = state.path();
        let path = dir.join(NAME);
        let mut cache = Cache::load(dir);
        cache.insert(stamp(1, 7), Digest::of(b"a"));
        cache.store();
        let entries = || Cache::load(dir).entries.len();
        assert_eq!(entries(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(entries(), 0, "writable by others");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(entries(), 0, "replaceable by others");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(entries(), 1);
        fs::write(&path, "[{]").unwrap();
        assert_eq!(entries(), 0, "damaged");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(entries(), 0, "a link");
    }

    /// On an empty /run the cache is the first to make the directory that the VMM's unprivileged
    /// user has to pass through.
    #[test]
    fn other_users_pass_through_the_directories_above() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("bulkhead/known");
        let mut cache = Cache::load(&dir);
        cache.changed = true;
        cache.store();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&run.path().join("bulkhead")) & 0o011, 0o011);
        assert_eq!(mode(&dir), 0o700);
    }

    #[test]
    fn a_fresh_or_future_change_is_not_settled() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        assert!(stamp(1, 97).is_settled(now));
        for ctime in [98, 99, 100, 101, -1] {
            assert!(!stamp(1, ctime).is_settled(now), "{ctime}");
        }
    }
}
