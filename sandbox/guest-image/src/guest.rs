//! A guest image on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Stamp};
use crate::digest::Digest;
use crate::error::GuestError;
use crate::file::{self, build_command};
use crate::manifest::{ImageFile, Manifest};

/// A guest image whose manifest was read and whose files exist with the right sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    dir: PathBuf,
    manifest: Manifest,
}

/// The number of files that [`GuestImage::verify_cached`] has checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files that were read and hashed.
    pub hashed: usize,
    /// Files that have not changed since they were hashed.
    pub unchanged: usize,
}

impl GuestImage {
    /// Reads the manifest of the image `dir` and checks that its files exist, have the right sizes,
    /// and can only be changed by root or this process's user. Their content is not read, see
    /// [`GuestImage::verify`].
    ///
    /// # Errors
    ///
    /// [`GuestError`] names the file and the remedy.
    pub fn open(dir: &Path) -> Result<Self, GuestError> {
        let io = |verb| move |source| GuestError::Io { verb, path: dir.to_owned(), source };
        let dir = std::path::absolute(dir).map_err(io("find"))?;
        let meta = fs::metadata(&dir).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                GuestError::Missing { path: dir.clone(), command: build_command(&dir) }
            }
            _ => GuestError::Io { verb: "read the status of", path: dir.clone(), source },
        })?;
        if !meta.is_dir() {
            return Err(GuestError::Type {
                command: build_command(&dir),
                path: dir,
                found: "a file",
                expected: "a directory",
            });
        }
        file::require_trusted(&dir, &meta)?;
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

    /// The image's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The kernel, an absolute path.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.vmlinux.file)
    }

    /// The initramfs, an absolute path.
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
        let dir = self.dir.clone();
        Err(GuestError::Protocol { dir, found, expected, command: build_command(&self.dir) })
    }

    /// Reads every file and compares its digest with the manifest's. Blocks for about 30 to 200 ms.
    ///
    /// # Errors
    ///
    /// [`GuestError::Content`] names the file and both digests.
    pub fn verify(&self) -> Result<(), GuestError> {
        self.parts().into_iter().try_for_each(|part| self.hash(part).map(drop))
    }

    /// Like [`GuestImage::verify`], but does not read a file again that has not changed since an earlier
    /// call with the same `state` directory verified it. `state` is created (0700) if it does not
    /// exist; on a tmpfs, the files are read once per boot of the node.
    ///
    /// # Why the cache can be trusted
    ///
    /// A file counts as unchanged if its device, inode, size, modification time, and change time
    /// are those of the verified file, and the manifest expects the same digest. Only the kernel
    /// sets the change time, on every write, truncation, rename and link, so an ordinary program
    /// cannot change a file and keep it. Two gaps remain. A write within one tick of the clock
    /// after the file was read could keep the time: a file that was changed less than two seconds
    /// before it was read is therefore not cached. And a process that may set the clock, write to
    /// the raw device, or write to the state directory can forge an entry: that requires root,
    /// which could as well replace the manifest. The digests protect against damage and incomplete
    /// copies. Tampering by others is prevented by the files' owner and mode, which are checked on
    /// every call.
    ///
    /// # Errors
    ///
    /// [`GuestError::Content`] names the file and both digests. A cache that cannot be read or
    /// written is not an error: the files are read, and the cause is logged.
    pub fn verify_cached(&self, state: &Path) -> Result<Checked, GuestError> {
        let mut cache = Cache::load(state);
        let mut checked = Checked::default();
        for part in self.parts() {
            let (_, meta) = file::open(&self.dir, &part.file)?;
            self.check_size(part, meta.len())?;
            if cache.contains(&Stamp::of(&meta), &part.sha256) {
                checked.unchanged += 1;
                continue;
            }
            if let Some(stamp) = self.hash(part)? {
                cache.insert(stamp, part.sha256);
            }
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
        let path = self.dir.join(&part.file);
        let command = build_command(&self.dir);
        Err(GuestError::Size { path, found, expected: part.size, command })
    }

    /// Compares a file's digest. Returns the file's stamp if it can be cached: it was the same before
    /// and after the file was read.
    fn hash(&self, part: &ImageFile) -> Result<Option<Stamp>, GuestError> {
        let (mut file, before) = file::open(&self.dir, &part.file)?;
        let path = self.dir.join(&part.file);
        let failed = |source| GuestError::Io { verb: "read", path: path.clone(), source };
        let began = std::time::SystemTime::now();
        let (found, size) = Digest::read(&mut file).map_err(failed)?;
        self.check_size(part, size)?;
        if found != part.sha256 {
            let command = build_command(&self.dir);
            return Err(GuestError::Content { path, found, expected: part.sha256, command });
        }
        let after = Stamp::of(&file.metadata().map_err(failed)?);
        let steady = after == Stamp::of(&before) && after.is_settled(began);
        Ok(steady.then_some(after))
    }
}
