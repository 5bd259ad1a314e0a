//! An image on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Stamp};
use crate::file::{self, mend};
use crate::manifest::{ImageFile, Manifest};
use crate::{Digest, GuestError};

/// An image whose manifest has been read and whose files are there with the right sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    dir: PathBuf,
    manifest: Manifest,
}

/// How [`Guest::verify_cached`] came to its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files that were read to their end.
    pub hashed: usize,
    /// Files that are unchanged since they were.
    pub unchanged: usize,
}

impl Guest {
    /// Reads the manifest of the image `dir` and checks that its files are there, have the right
    /// sizes, and cannot be changed by anyone but root or who runs this program. Content is not
    /// read: see [`Guest::verify`].
    ///
    /// # Errors
    ///
    /// [`GuestError`] names the file and what to do.
    pub fn open(dir: &Path) -> Result<Self, GuestError> {
        let io = |verb| move |source| GuestError::Io { verb, path: dir.to_owned(), source };
        let dir = std::path::absolute(dir).map_err(io("find"))?;
        let meta = fs::metadata(&dir).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => GuestError::Missing { path: dir.clone(), mend: mend(&dir) },
            _ => GuestError::Io { verb: "look at", path: dir.clone(), source },
        })?;
        if !meta.is_dir() {
            let (found, expected) = ("a file", "a directory");
            return Err(GuestError::Type { mend: mend(&dir), path: dir, found, expected });
        }
        file::trust(&dir, &meta)?;
        let manifest = Manifest::read(&dir)?;
        let guest = Self { dir, manifest };
        for part in guest.parts() {
            let (_, meta) = file::open(&guest.dir, &part.file)?;
            guest.check_size(part, meta.len())?;
        }
        Ok(guest)
    }

    /// The image's directory, an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the image is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The kernel, an absolute path.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.vmlinux.file)
    }

    /// The initial RAM file system, an absolute path.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join(&self.manifest.initramfs.file)
    }

    /// Checks that the agent speaks the caller's protocol.
    ///
    /// # Errors
    ///
    /// [`GuestError::Protocol`] names both versions.
    pub fn expect_protocol(&self, expected: u32) -> Result<(), GuestError> {
        let found = self.manifest.protocol;
        if found == expected {
            return Ok(());
        }
        let (dir, mend) = (self.dir.clone(), mend(&self.dir));
        Err(GuestError::Protocol { dir, found, expected, mend })
    }

    /// Reads every file and compares its digest with the manifest's. Blocks for about 30 to 200 ms.
    ///
    /// # Errors
    ///
    /// [`GuestError::Content`] names the file and both digests.
    pub fn verify(&self) -> Result<(), GuestError> {
        self.parts().into_iter().try_for_each(|part| self.hash(part).map(drop))
    }

    /// As [`Guest::verify`], but a file that is unchanged since a call with the same `state`
    /// directory found it right is not read again. `state` is made (0700) when it is not there;
    /// best it lies on a tmpfs, so that each boot of the node reads the files once.
    ///
    /// # Why that can be trusted
    ///
    /// A file counts as unchanged when its device, inode, size, modification time, and change
    /// time are those of the file that was read, and the manifest expects the same digest. The
    /// kernel alone sets the change time, on every write, truncation, rename and link, so that an
    /// ordinary program cannot change a file and keep it. Two gaps remain. A write within one
    /// tick of the clock after the reading could keep the time: a file that was changed less than
    /// two seconds before it was read is therefore not remembered. And who may set the clock,
    /// write the raw device, or write the state directory can deceive: that is root, who could
    /// as well write a new manifest. The digests guard against damage and half-done copies; what
    /// guards against others is that only root can write these files, and that is checked on
    /// every call.
    ///
    /// # Errors
    ///
    /// [`GuestError::Content`] names the file and both digests. A cache that cannot be read or
    /// written is no error: the files are read then, and the log says why.
    pub fn verify_cached(&self, state: &Path) -> Result<Checked, GuestError> {
        let mut cache = Cache::load(state);
        let mut checked = Checked::default();
        for part in self.parts() {
            let (_, meta) = file::open(&self.dir, &part.file)?;
            self.check_size(part, meta.len())?;
            if cache.knows(&Stamp::of(&meta), &part.sha256) {
                checked.unchanged += 1;
                continue;
            }
            let stamp = self.hash(part)?;
            cache.remember(stamp, part.sha256);
            checked.hashed += 1;
        }
        cache.store();
        Ok(checked)
    }

    fn parts(&self) -> [&ImageFile; 2] {
        [&self.manifest.vmlinux, &self.manifest.initramfs]
    }

    fn check_size(&self, part: &ImageFile, found: u64) -> Result<(), GuestError> {
        if found == part.size {
            return Ok(());
        }
        let (path, expected) = (self.dir.join(&part.file), part.size);
        Err(GuestError::Size { path, found, expected, mend: mend(&self.dir) })
    }

    /// Compares a file's digest. Gives the stamp that it had before and after, if it is fit to be
    /// remembered.
    fn hash(&self, part: &ImageFile) -> Result<Option<Stamp>, GuestError> {
        let (mut file, before) = file::open(&self.dir, &part.file)?;
        let path = self.dir.join(&part.file);
        let failed = |source| GuestError::Io { verb: "read", path: path.clone(), source };
        let began = std::time::SystemTime::now();
        let (found, size) = Digest::read(&mut file).map_err(failed)?;
        self.check_size(part, size)?;
        if found != part.sha256 {
            let (expected, mend) = (part.sha256, mend(&self.dir));
            return Err(GuestError::Content { path, found, expected, mend });
        }
        let after = Stamp::of(&file.metadata().map_err(failed)?);
        let steady = after == Stamp::of(&before) && after.is_settled(began);
        Ok(steady.then_some(after))
    }
}
