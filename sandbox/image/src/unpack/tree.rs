//! The directory that layers are unpacked onto, by file descriptors only.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fsetxattr, linkat, mkdirat, mknodat, openat, openat2, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::UnpackError;
use super::entry::{Entry, Kind};
use super::remove::remove_all;

const BUFFER: usize = 128 * 1024;
/// Nothing outside, nothing through `/proc`.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What is in an entry's place, now that room was made.
enum Cleared {
    Empty,
    Directory,
    /// The very file that it is to be a link to.
    Same,
}

/// The tree below one root.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    owners: bool,
    /// The last parent; entries of one directory follow each other.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories and their times, which what is put into them changes.
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

    /// Makes what an entry says, in the place of what was there.
    pub(super) fn make(&mut self, entry: &mut Entry<'_>) -> Result<(), UnpackError> {
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
                        .map_err(UnpackError::io("make", &path))?;
                }
                self.times.push((path.clone(), entry.modified));
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&parent, name, flags, Mode::empty())
                    .map_err(UnpackError::io("open", &path))?;
                self.finish_open(&fd, &parent, name, entry)
            }
            Kind::Symlink(to) => {
                symlinkat(to, &parent, name).map_err(UnpackError::io("make", &path))?;
                self.own(&parent, name, entry)
            }
            Kind::HardLink(_) => {
                let Some((from, old)) = &target else { unreachable!("it was looked for above") };
                linkat(from, old, &parent, name, AtFlags::empty())
                    .map_err(UnpackError::io("link", &path))
            }
            Kind::Fifo => {
                mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(entry.mode & 0o777), 0)
                    .map_err(UnpackError::io("make", &path))?;
                self.own(&parent, name, entry)
            }
            Kind::Device => Ok(()),
        }
    }

    /// Makes room for an entry; a directory stays where one is to be.
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
            Err(error) => return Err(UnpackError::io("look at", &entry.path)(error)),
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
        // The parent that is remembered may be below what goes.
        self.parent = None;
        remove_all(parent, name, &entry.path)?;
        Ok(Cleared::Empty)
    }

    fn root_entry(&mut self, entry: &Entry<'_>) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::refuse(&entry.path, "the root is a directory"));
        }
        self.times.push((PathBuf::new(), entry.modified));
        let fd = self.inside(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.finish_open(&fd, &fd, OsStr::new("."), entry)
    }

    /// Opens a path below the root, whatever links are on it.
    fn inside(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, UnpackError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), INSIDE)
            .map_err(UnpackError::io("open", path))
    }

    /// Makes a directory the current parent; what is missing of it is made.
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
                let (above, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
                self.enter(above)?;
                let parent = self.parent_fd()?;
                let name = name.unwrap_or_default();
                let made = mkdirat(&parent, name, Mode::from_raw_mode(0o755));
                made.map_err(UnpackError::io("make", path))?;
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
        let mut file = File::from(fd.map_err(UnpackError::io("make", path))?);
        let mut content = content.take(size);
        loop {
            let read = content.read(&mut self.buffer).map_err(UnpackError::Broken)?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read]).map_err(UnpackError::io("write", path))?;
        }
        if content.limit() > 0 {
            return Err(UnpackError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(file)
    }

    /// Owner, attributes, mode and time, in the order in which none undoes another.
    fn finish_open(
        &self,
        fd: &impl AsFd,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry<'_>,
    ) -> Result<(), UnpackError> {
        self.own(parent, name, entry)?;
        for (key, value) in entry.attributes.iter().filter(|(key, _)| self.may_set(key)) {
            match fsetxattr(fd, key.as_str(), value, XattrFlags::empty()) {
                // Not every file system has them.
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

    /// Capabilities of a program are for root to give; `trusted.` would speak to the host's overlay.
    fn may_set(&self, key: &str) -> bool {
        key.starts_with("user.") && !key.starts_with("user.overlay.")
            || (self.owners && key == "security.capability")
    }

    fn own(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry<'_>) -> Result<(), UnpackError> {
        if self.owners {
            let (uid, gid) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
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

    /// Removes `name` in a directory, if both are there; how many entries went.
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

    /// Removes what is in a directory but for `keep`; how many entries went.
    pub(super) fn hide(
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
                // What is this layer's own stays, what it was merged with goes.
                removed += self.hide(&below, keep)?;
            }
        }
        Ok(removed)
    }

    /// Sets the times of directories, now that nothing more is put into them.
    pub(super) fn settle(&mut self) -> Result<(), UnpackError> {
        self.parent = None;
        for (path, modified) in std::mem::take(&mut self.times).into_iter().rev() {
            match self.inside(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(fd) => set_time(&fd, OsStr::new("."), modified, &path)?,
                // The layer itself put something else there later.
                Err(_) => log::debug!("directory {} is gone again", path.display()),
            }
        }
        Ok(())
    }
}

/// The names in a directory.
pub(super) fn names(fd: &impl AsFd, path: &Path) -> Result<Vec<OsString>, UnpackError> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut names = Vec::new();
    for entry in Dir::read_from(fd).map_err(UnpackError::io("read", path))? {
        let name =
            entry.map_err(UnpackError::io("read", path))?.file_name().to_owned().into_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
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

/// Unlinks one entry that is no directory.
pub(super) fn unlink(parent: &impl AsFd, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
    unlinkat(parent, name, flags)
}
