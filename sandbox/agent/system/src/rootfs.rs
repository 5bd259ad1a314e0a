//! Containers' root file systems.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use agent_api::GUEST_ROOT;
use agent_api::agent::{Layers, Rootfs as Wanted, rootfs};
use nix::mount::MsFlags;

use crate::error::{Doing, Result, invalid};
use crate::paths::{below_guest_root, make_dir};
use crate::{console, disk, mounts};

/// So many layers' paths fit into the one page of options that overlayfs takes.
const LAYERS_MAX: usize = 100;

/// Numbers the layers' mount points, to keep them short: see [`LAYERS_MAX`].
static NEXT_LAYER: AtomicU64 = AtomicU64::new(0);

/// A mounted root file system, unmounted when dropped.
#[derive(Debug)]
pub struct Rootfs {
    /// Where it is.
    pub path: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Rootfs {
    /// Mounts the `wanted` root file system, below the container's `dir` where it needs a mount.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what the host must not ask for; a mount that fails. Nothing stays mounted.
    pub fn mount(dir: &Path, wanted: &Wanted) -> Result<Self> {
        let mut rootfs = Self { path: dir.join("rootfs"), mounts: Vec::new() };
        match &wanted.kind {
            Some(rootfs::Kind::Path(path)) => {
                let path = below_guest_root("rootfs.path", path)?;
                if !path.is_dir() {
                    return Err(invalid(format!("rootfs.path {path:?} is not a directory")));
                }
                match wanted.overlay {
                    true => rootfs.overlay(dir, &[path], None)?,
                    false => rootfs.path = path,
                }
            }
            Some(rootfs::Kind::Layers(layers)) => rootfs.layers(dir, layers)?,
            _ => return Err(invalid("rootfs has neither a path nor layers")),
        }
        Ok(rootfs)
    }

    fn layers(&mut self, dir: &Path, layers: &Layers) -> Result<()> {
        let count = layers.lower.len();
        if count == 0 || count > LAYERS_MAX {
            return Err(invalid(format!(
                "rootfs has {count} layers; 1 to {LAYERS_MAX} are supported"
            )));
        }
        let mut lower = Vec::new();
        for layer in &layers.lower {
            let number = NEXT_LAYER.fetch_add(1, Ordering::Relaxed);
            let at = PathBuf::from(format!("{GUEST_ROOT}/l/{number}"));
            disk::mount(layer, &at, true)?;
            self.mounts.push(at.clone());
            lower.push(at);
        }
        self.overlay(dir, &lower, layers.upper.as_ref())
    }

    fn overlay(
        &mut self,
        dir: &Path,
        lower: &[PathBuf],
        upper: Option<&agent_api::agent::Disk>,
    ) -> Result<()> {
        let writable = dir.join("upper");
        match upper {
            Some(upper) => disk::mount(upper, &writable, false)?,
            None => {
                make_dir(&writable)?;
                mounts::mount("tmpfs", &writable, "tmpfs", MsFlags::empty(), "mode=0755")?;
            }
        }
        self.mounts.push(writable.clone());
        let upper = writable.join("fs");
        let work = writable.join("work");
        make_dir(&upper)?;
        make_dir(&work)?;
        copy_owner_and_mode(&lower[0], &upper)?;
        make_dir(&self.path)?;
        let data = options(lower, &upper, &work);
        mounts::mount("overlay", &self.path, "overlay", MsFlags::empty(), &data)?;
        self.mounts.push(self.path.clone());
        Ok(())
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            if let Err(error) = mounts::unmount(mount) {
                console::log_error(&error.to_string());
            }
            let _ = fs::remove_dir(mount);
        }
    }
}

fn options(lower: &[PathBuf], upper: &Path, work: &Path) -> String {
    let lower: Vec<_> = lower.iter().map(|path| escaped(path)).collect();
    let lower = lower.join(":");
    format!("lowerdir={lower},upperdir={},workdir={}", escaped(upper), escaped(work))
}

/// `path` with overlayfs' separators escaped.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// An overlay's root directory is the upper one: it gets the image's owner and mode.
fn copy_owner_and_mode(model: &Path, dir: &Path) -> Result<()> {
    let copied = fs::metadata(model).and_then(|meta| {
        chown(dir, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(meta.mode() & 0o7777))
    });
    copied.doing(|| format!("copying owner and mode of {} to {}", model.display(), dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_options_are_escaped() {
        let lower = [PathBuf::from("/l/0"), PathBuf::from("/l/a:b,c")];
        let data = options(&lower, Path::new("/u/fs"), Path::new("/u/work"));
        assert_eq!(data, "lowerdir=/l/0:/l/a\\:b\\,c,upperdir=/u/fs,workdir=/u/work");
    }

    #[test]
    fn a_rootfs_is_a_path_or_layers() {
        let dir = tempfile::tempdir().unwrap();
        let error = Rootfs::mount(dir.path(), &Wanted::default()).unwrap_err().to_string();
        assert_eq!(error, "rootfs has neither a path nor layers");
        let mut outside = Wanted::default();
        outside.set_path("/etc".into());
        let error = Rootfs::mount(dir.path(), &outside).unwrap_err().to_string();
        assert_eq!(error, "rootfs.path \"/etc\" is not below /run/bulkhead");
        let mut empty = Wanted::default();
        empty.set_layers(Layers::default());
        let error = Rootfs::mount(dir.path(), &empty).unwrap_err().to_string();
        assert_eq!(error, "rootfs has 0 layers; 1 to 100 are supported");
    }
}
