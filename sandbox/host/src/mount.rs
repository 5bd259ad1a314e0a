//! Mounting a snapshotter's root file system, and unmounting.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, unshare};

use crate::loopback::Loop;
use crate::mount_error::{MountError, OPTIONS_MAX};
use crate::mounts::MountTable;
use crate::namespace::on_own_thread;

/// How often [`unmount_all`] reads the mount table again before it gives up.
const ROUNDS: usize = 16;

/// A mount of the root file system, as the snapshotter described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system type (`overlay`, `bind`, `ext4`, `erofs`, ...).
    pub kind: String,
    /// Device or directory.
    pub source: String,
    /// Options in fstab's form, one per element.
    pub options: Vec<String>,
}

/// Arguments of mount(2).
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    flags: MsFlags,
    data: String,
    /// What relative paths in `data` are relative to.
    base: Option<PathBuf>,
    /// The source is an image, to be mounted through a loop device.
    image: bool,
}

/// Options that are flags of mount(2): name, flag, and whether the option sets or clears it.
const FLAGS: &[(&str, MsFlags, bool)] = &[
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("bind", MsFlags::MS_BIND, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
    ("defaults", MsFlags::empty(), true),
];

fn plan(mount: &RootfsMount) -> Plan {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    let mut image = false;
    for option in &mount.options {
        if option == "loop" {
            image = true;
            continue;
        }
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, true)) => flags |= *flag,
            Some((_, flag, false)) => flags &= !*flag,
            None => data.push(option.clone()),
        }
    }
    if mount.kind == "bind" {
        flags |= MsFlags::MS_BIND;
    }
    let base = if mount.kind == "overlay" { shorten(&mut data) } else { None };
    Plan { flags, data: data.join(","), base, image }
}

/// Makes an overlay's lower directories relative to their common parent when the options would
/// not fit one page; returns that parent.
fn shorten(data: &mut [String]) -> Option<PathBuf> {
    let length: usize = data.iter().map(|option| option.len() + 1).sum();
    if length < OPTIONS_MAX {
        return None;
    }
    let option = data.iter_mut().find(|option| option.starts_with("lowerdir="))?;
    let layers: Vec<PathBuf> =
        option.strip_prefix("lowerdir=")?.split(':').map(PathBuf::from).collect();
    let mut base = layers.first()?.parent()?.to_owned();
    while !layers.iter().all(|layer| layer.starts_with(&base) && *layer != base) {
        base = base.parent()?.to_owned();
    }
    let relative: Option<Vec<&str>> =
        layers.iter().map(|layer| layer.strip_prefix(&base).ok().and_then(Path::to_str)).collect();
    *option = format!("lowerdir={}", relative?.join(":"));
    Some(base)
}

/// Mounts `wanted` on `target`.
#[expect(clippy::disallowed_methods, reason = "this module mounts")]
pub(crate) fn mount(wanted: &RootfsMount, target: &Path) -> Result<(), MountError> {
    let Plan { flags, data, base, image } = plan(wanted);
    if data.len() > OPTIONS_MAX {
        return Err(MountError::TooLong { target: target.to_owned(), length: data.len() });
    }
    let failed = |error| failed(wanted, target, error);
    let read_only = flags.contains(MsFlags::MS_RDONLY);
    // Kept open until it is mounted: the kernel frees an unused device.
    let device = image.then(|| Loop::attach(Path::new(&wanted.source), read_only)).transpose();
    let device = device.map_err(failed)?;
    let call = || {
        let data = (!data.is_empty()).then_some(data.as_str());
        let source = device.as_ref().map_or(Path::new(&wanted.source), Loop::path);
        nix::mount::mount(Some(source), target, Some(wanted.kind.as_str()), flags, data)?;
        // A bind mount takes its other flags, read-only above all, only from a remount.
        if flags.contains(MsFlags::MS_BIND)
            && flags.intersects(!(MsFlags::MS_BIND | MsFlags::MS_REC))
        {
            let again = flags | MsFlags::MS_REMOUNT;
            nix::mount::mount(None::<&str>, target, None::<&str>, again, None::<&str>)?;
        }
        Ok(())
    };
    let result = match &base {
        None => call().map_err(io::Error::from),
        Some(base) => in_directory(base, call),
    };
    result.map_err(failed)
}

/// The error of a mount that failed.
pub(crate) fn failed(wanted: &RootfsMount, target: &Path, source: io::Error) -> MountError {
    MountError::Mount {
        kind: wanted.kind.clone(),
        source_path: wanted.source.clone(),
        target: target.to_owned(),
        source,
    }
}

/// Runs `call` with `directory` as working directory, on its own thread: the process keeps its
/// working directory.
fn in_directory(directory: &Path, call: impl FnOnce() -> nix::Result<()> + Send) -> io::Result<()> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(directory)?;
        Ok(call()?)
    })
}

/// Detaches every mount at or below `target`, the newest first.
#[expect(clippy::disallowed_methods, reason = "this module mounts")]
pub(crate) fn unmount_all(target: &Path) -> Result<(), MountError> {
    let failed = |source: io::Error| MountError::Unmount { target: target.to_owned(), source };
    for _ in 0..ROUNDS {
        let table = MountTable::current().map_err(failed)?;
        let mut mounts = table.below(target).rev().peekable();
        if mounts.peek().is_none() {
            return Ok(());
        }
        for mount in mounts {
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            match nix::mount::umount2(&*mount.point, flags) {
                // EINVAL, ENOENT: already detached with the mount below it.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }
    Err(failed(io::Error::other("new mounts keep appearing there")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(lower: &str) -> RootfsMount {
        RootfsMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec!["ro".into(), "index=off".into(), format!("lowerdir={lower}")],
        }
    }

    #[test]
    fn splits_flags_from_data() {
        let plan = plan(&overlay("/a:/b"));
        assert_eq!(plan.flags, MsFlags::MS_RDONLY);
        assert_eq!((plan.data.as_str(), plan.base), ("index=off,lowerdir=/a:/b", None));
        assert!(!plan.image);
    }

    #[test]
    fn long_overlays_get_relative_layers() {
        let layers: Vec<String> = (0..127)
            .map(|n| format!("/var/lib/containerd/snapshots/{n}/a-rather-long-name/fs"))
            .collect();
        let plan = plan(&overlay(&layers.join(":")));
        assert_eq!(plan.base.as_deref(), Some(Path::new("/var/lib/containerd/snapshots")));
        assert!(plan.data.starts_with("index=off,lowerdir=0/a-rather-long-name/fs:1/"));
        assert!(plan.data.len() < OPTIONS_MAX);
    }

    #[test]
    #[ignore = "needs mount"]
    fn a_read_only_bind_is_mounted_twice_and_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let to = dir.path().join("to");
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("f"), "x").unwrap();
        let bind = RootfsMount {
            kind: "bind".into(),
            source: from.display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
        };
        mount(&bind, &to).unwrap();
        mount(&bind, &to).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("f")).unwrap(), "x");
        let error = std::fs::write(to.join("g"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
        unmount_all(&to).unwrap();
        assert!(!to.join("f").exists());
        unmount_all(&to).unwrap();
    }
}
