//! Which files were found right before. [`crate::Guest::verify_cached`] says why that is sound.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{Digest, file};

/// The cache's name in the state directory.
const NAME: &str = "guest-verified.json";

/// How many files are remembered: those of a few images.
const MAX_ENTRIES: usize = 16;

/// The most bytes the cache may have.
const MAX: u64 = 64 * 1024;

/// How old a file's last change must be when its reading begins.
const SETTLED: Duration = Duration::from_secs(2);

/// What changes when a file does.
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

/// The files that were found right, the newest last.
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

    /// Whether the last change lies so far before `now` that a further one gets another time.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(self.ctime.0), u32::try_from(self.ctime.1))
        else {
            return false;
        };
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        changed
            .and_then(|changed| now.duration_since(changed).ok())
            .is_some_and(|age| age > SETTLED)
    }
}

impl Cache {
    /// What is remembered in `dir`; nothing when that cannot be trusted or read.
    pub(crate) fn load(dir: &Path) -> Self {
        let entries = read(dir).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                log::warn!("not using {}: {error}", dir.join(NAME).display());
            }
            Vec::new()
        });
        Self { dir: dir.to_owned(), entries, changed: false }
    }

    pub(crate) fn knows(&self, stamp: &Stamp, sha256: &Digest) -> bool {
        self.entries.iter().any(|entry| entry.stamp == *stamp && entry.sha256 == *sha256)
    }

    /// Remembers a file, if it is fit to be.
    pub(crate) fn remember(&mut self, stamp: Option<Stamp>, sha256: Digest) {
        let Some(stamp) = stamp else { return };
        self.entries.retain(|it| (it.stamp.dev, it.stamp.ino) != (stamp.dev, stamp.ino));
        if self.entries.len() >= MAX_ENTRIES {
            self.entries.remove(0);
        }
        self.entries.push(Entry { stamp, sha256 });
        self.changed = true;
    }

    /// Writes what has been learnt. Two that do so at once leave the entries of one of them.
    pub(crate) fn store(&self) {
        if !self.changed {
            return;
        }
        if let Err(error) = self.write() {
            log::warn!("cannot write {}: {error}", self.dir.join(NAME).display());
        }
    }

    fn write(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        trust(&fs::metadata(&self.dir)?)?;
        let bytes = serde_json::to_vec(&self.entries)?;
        // Of one process alone, so that two never write into the same file.
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
            // Of no use to anyone; that it may not exist is fine.
            let _ = fs::remove_file(&new);
        }
        written
    }
}

fn read(dir: &Path) -> io::Result<Vec<Entry>> {
    trust(&fs::metadata(dir)?)?;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(dir.join(NAME))?;
    let meta = file.metadata()?;
    trust(&meta)?;
    if !meta.is_file() || meta.len() > MAX {
        return Err(io::Error::other("it is not what was written"));
    }
    let mut bytes = Vec::new();
    file.take(MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn trust(meta: &Metadata) -> io::Result<()> {
    if file::is_trusted(meta) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may write it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(ino: u64, ctime: i64) -> Stamp {
        Stamp { dev: 1, ino, size: 3, mtime: (5, 6), ctime: (ctime, 0) }
    }

    #[test]
    fn remembers_exactly_what_it_saw() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("made/here");
        let (digest, other) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut cache = Cache::load(&dir);
        cache.remember(Some(stamp(1, 7)), digest);
        cache.remember(None, other);
        cache.store();
        let mut cache = Cache::load(&dir);
        assert!(cache.knows(&stamp(1, 7), &digest));
        assert!(!cache.knows(&stamp(1, 7), &other), "another digest is expected now");
        assert!(!cache.knows(&stamp(1, 8), &digest) && !cache.knows(&stamp(2, 7), &digest));
        for ino in 2..40 {
            cache.remember(Some(stamp(ino, 7)), digest);
        }
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert!(cache.knows(&stamp(39, 7), &digest) && !cache.knows(&stamp(1, 7), &digest));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no file is left beside");
    }

    #[test]
    fn trusts_only_its_own() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let (dir, path) = (state.path(), state.path().join(NAME));
        let mut cache = Cache::load(dir);
        cache.remember(Some(stamp(1, 7)), Digest::of(b"a"));
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

    #[test]
    fn a_fresh_or_future_change_is_not_settled() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        assert!(stamp(1, 97).is_settled(now));
        for ctime in [98, 99, 100, 101, -1] {
            assert!(!stamp(1, ctime).is_settled(now), "{ctime}");
        }
    }
}
