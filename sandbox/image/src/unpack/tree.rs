//! The directory that layers are unpacked onto, accessed relative to file descriptors only.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fsetxattr, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::error::UnpackError;
use super::remove::{names, remove_all};

const BUFFER: usize = 128 * 1024;
/// Resolves within the root, without the magic links of `/proc`.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What is in the place of an entry after [`Tree::clear`].
enum Cleared {
    Empty,
    Directory,
    /// The file that the entry would link to.
    Same,
}

/// The tree below a root directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    owners: bool,
    /// Cache of the last parent: entries of one directory usually follow each other.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories and their times, set at the end because adding entries changes them.
    times: Vec<(PathBuf, i64)>,
    buffer: Vec<u8>,
}

impl Tree {
    pub(super) fn open(root: &Path, owners: bool) -> Result<Self, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            openat(CWD, root, flags, Mode::empty()).map_err(UnpackError::io("open", root))?;
        Ok(Self { root, owners, parent: None, times: Vec::new(), buffer: vec![0; BUFFER] })
    }

    /// Creates an entry, replacing what exists in its place.
    pub(super) fn create(&mut self, entry: &mut Entry<'_>) -> Result<(), UnpackError> {
        let path = entry.path.clone();
        let Some(name) = path.file_name() else { return self.root_entry(entry) };
        let target = match &entry.kind {
            Kind::HardLink(target) => Some(self.hard_link_target(&path, target)?),
            _ => None,
        };
        self.enter(path.parent().unwrap_or(Path::new("")))?;
        let parent = self.parent_fd()?;
        let kept = match self.clear(&parent, name, entry, target.as_ref())? {
            Cleared::Same => return Ok(()),
            Cleared::Directory => true,
            Cleared::Empty => false,
        };
        match &entry.kind {
            Kind::File { size } => {
                let file = self.file(&parent, name, &path, *size, entry.content)?;
                self.finish_open(&file, &parent, name, entry)
            }
            Kind::Directory => {
                if !kept {
                    mkdirat(&parent, name, Mode::from_raw_mode(0o700))
                        .map_err(UnpackError::io("create", &path))?;
                }
                self.times.push((path.clone(), entry.modified));
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&parent, name, flags, Mode::empty())
                    .map_err(UnpackError::io("open", &path))?;
                self.finish_open(&fd, &parent, name, entry)
            }
            Kind::Symlink(to) => {
                symlinkat(to, &parent, name).map_err(UnpackError::io("create", &path))?;
                self.set_owner_and_time(&parent, name, entry)
            }
            Kind::HardLink(_) => {
                let Some((from, old)) = &target else { unreachable!("set above for a hard link") };
                linkat(from, old, &parent, name, AtFlags::empty())
                    .map_err(UnpackError::io("link", &path))
            }
            Kind::Fifo => {
                mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(entry.mode & 0o777), 0)
                    .map_err(UnpackError::io("create", &path))?;
                self.set_owner_and_time(&parent, name, entry)
            }
            Kind::Device => Ok(()),
        }
    }

    /// Removes what exists in the place of an entry; a directory is kept for a directory entry.
    fn clear(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry<'_>,
        target: Option<&(OwnedFd, OsString)>,
    ) -> Result<Cleared, UnpackError> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Cleared::Empty),
            Err(error) => return Err(UnpackError::io("stat", &entry.path)(error)),
        };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory && entry.kind == Kind::Directory {
            return Ok(Cleared::Directory);
        }
        if let Some((from, old)) = target {
            let same = statat(from, old, AtFlags::SYMLINK_NOFOLLOW);
            if same.is_ok_and(|it| (it.st_dev, it.st_ino) == (stat.st_dev, stat.st_ino)) {
                return Ok(Cleared::Same);
            }
        }
        // The cached parent may be below the removed entry.
        self.parent = None;
        remove_all(parent, name, &entry.path)?;
        Ok(Cleared::Empty)
    }

    fn root_entry(&mut self, entry: &Entry<'_>) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::refuse(&entry.path, "the root must be a directory"));
        }
        self.times.push((PathBuf::new(), entry.modified));
        let fd = self.inside(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.finish_open(&fd, &fd, OsStr::new("."), entry)
    }

    /// Opens a path below the root; symlinks are resolved within the root.
    fn inside(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, UnpackError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), INSIDE)
            .map_err(UnpackError::io("open", path))
    }

    /// Makes a directory the current parent, creating it and its parents if missing.
    fn enter(&mut self, path: &Path) -> Result<(), UnpackError> {
        if self.parent.as_ref().is_some_and(|(known, _)| known == path) {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = match self.inside(path, flags) {
            Ok(fd) => fd,
            Err(UnpackError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && path.file_name().is_some() =>
            {
                self.enter(path.parent().unwrap_or(Path::new("")))?;
                let parent = self.parent_fd()?;
                let name = path.file_name().unwrap_or_default();
                let made = mkdirat(&parent, name, Mode::from_raw_mode(0o755));
                made.map_err(UnpackError::io("create", path))?;
                self.inside(path, flags)?
            }
            Err(error) => return Err(error),
        };
        self.parent = Some((path.to_owned(), fd));
        Ok(())
    }

    fn parent_fd(&self) -> Result<OwnedFd, UnpackError> {
        match &self.parent {
            Some((path, fd)) => fd.try_clone().map_err(UnpackError::io("open", path)),
            None => self.root.try_clone().map_err(UnpackError::io("open", Path::new("/"))),
        }
    }

    fn hard_link_target(
        &self,
        path: &Path,
        target: &Path,
    ) -> Result<(OwnedFd, OsString), UnpackError> {
        let Some(name) = target.file_name() else {
            return Err(UnpackError::refuse(path, "it links to a directory"));
        };
        let parent = target.parent().unwrap_or(Path::new(""));
        let parent = self.inside(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(UnpackError::io("link to", target))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(UnpackError::refuse(path, "it links to a directory"));
        }
        Ok((parent, name.to_owned()))
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        size: u64,
        content: &mut dyn io::Read,
    ) -> Result<File, UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(fd.map_err(UnpackError::io("create", path))?);
        let mut content = content.take(size);
        loop {
            let read = content.read(&mut self.buffer).map_err(UnpackError::Corrupt)?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read]).map_err(UnpackError::io("write", path))?;
        }
        if content.limit() > 0 {
            return Err(UnpackError::Corrupt(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(file)
    }

    /// Sets owner, attributes, mode and time, in this order: chown(2) clears set-user-ID bits and
    /// capabilities, and a read-only mode can prevent setting attributes.
    fn finish_open(
        &self,
        fd: &impl AsFd,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry<'_>,
    ) -> Result<(), UnpackError> {
        self.set_owner_and_time(parent, name, entry)?;
        let attributes = entry.attributes.iter();
        for (key, value) in attributes.filter(|(key, _)| may_set(key, self.owners)) {
            match fsetxattr(fd, key.as_str(), value, XattrFlags::empty()) {
                // Not every file system supports them.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => {
                    return Err(UnpackError::io("set an attribute of", &entry.path)(error));
                }
            }
        }
        fchmod(fd, Mode::from_raw_mode(entry.mode))
            .map_err(UnpackError::io("set the mode of", &entry.path))?;
        set_time(parent, name, entry.modified, &entry.path)
    }

    /// Sets the owner, and the time of an entry that [`Self::finish_open`] is not called for.
    fn set_owner_and_time(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry<'_>,
    ) -> Result<(), UnpackError> {
        if self.owners {
            let uid = Uid::from_raw(entry.uid);
            let gid = Gid::from_raw(entry.gid);
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(UnpackError::io("set the owner of", &entry.path))?;
        }
        match entry.kind {
            Kind::File { .. } | Kind::Directory => Ok(()),
            Kind::Symlink(_) | Kind::HardLink(_) | Kind::Fifo | Kind::Device => {
                set_time(parent, name, entry.modified, &entry.path)
            }
        }
    }

    /// Removes `name` in a directory, if both exist; returns the number of removed entries.
    pub(super) fn remove(&mut self, parent: &Path, name: &OsStr) -> Result<u64, UnpackError> {
        self.parent = None;
        match self.inside(parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => remove_all(&fd, name, &parent.join(name)),
            Err(UnpackError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the contents of a directory except `keep`; returns the number of removed entries.
    pub(super) fn clear_directory(
        &mut self,
        path: &Path,
        keep: &BTreeSet<PathBuf>,
    ) -> Result<u64, UnpackError> {
        self.parent = None;
        let fd = match self.inside(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(UnpackError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        let mut removed = 0;
        for name in names(&fd, path)? {
            let below = path.join(&name);
            if !keep.contains(&below) {
                removed += remove_all(&fd, &name, &below)?;
            } else if statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::Directory)
            {
                // Keep what this layer created and remove what it was merged with.
                removed += self.clear_directory(&below, keep)?;
            }
        }
        Ok(removed)
    }

    /// Sets the times of directories, after all entries of a layer were created.
    pub(super) fn set_directory_times(&mut self) -> Result<(), UnpackError> {
        self.parent = None;
        for (path, modified) in std::mem::take(&mut self.times).into_iter().rev() {
            match self.inside(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(fd) => set_time(&fd, OsStr::new("."), modified, &path)?,
                // Replaced or removed by a later entry of the same layer.
                Err(_) => tracing::debug!(path = %path.display(), "directory was replaced"),
            }
        }
        Ok(())
    }
}

/// Whether an extended attribute may be set. Excludes `trusted.` and `user.overlay.`, which
/// overlayfs on the host interprets; file capabilities require `owners`, that is, root.
fn may_set(key: &str, owners: bool) -> bool {
    key.starts_with("user.") && !key.starts_with("user.overlay.")
        || (owners && key == "security.capability")
}

fn set_time(
    parent: &impl AsFd,
    name: &OsStr,
    modified: i64,
    path: &Path,
) -> Result<(), UnpackError> {
    let time = Timespec { tv_sec: modified, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(UnpackError::io("set the time of", path))
}

#[cfg(test)]
mod tests {
    use super::may_set;

    #[test]
    fn attributes_without_meaning_to_the_host_are_set() {
        assert!(may_set("user.k", false));
        assert!(may_set("security.capability", true));
        assert!(!may_set("security.capability", false));
        for key in ["user.overlay.opaque", "trusted.overlay.opaque", "security.selinux", "system.x"]
        {
            assert!(!may_set(key, true), "{key}");
        }
    }
}
