//! `subPath`: a part of a volume, which must not lead out of it.
//!
//! A container that writes to the volume can plant a link to any path of the node. So the kernel resolves the path
//! with `RESOLVE_BENEATH`, and the result is bind-mounted onto a path of ours through its open descriptor.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use crate::mounts;
use crate::node_error::NodeError;

/// Why a part of a volume cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    /// It leads out of the volume.
    #[error("subPath {path:?} leads out of the volume at {volume}")]
    Escape {
        /// The part.
        path: String,
        /// The volume.
        volume: PathBuf,
    },
    /// A system call failed.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Bind-mounts `path` of the volume at `volume` to `target`, which must not exist; missing directories are created.
pub(crate) fn bind_part(volume: &Path, path: &str, target: &Path) -> Result<(), SubPathError> {
    let part = resolve(volume, path)?;
    let stat = fstat(&part).map_err(NodeError::at("look at", volume))?;
    let is_directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    if is_directory {
        fs::create_dir(target).map_err(NodeError::at("create", target))?;
    } else {
        fs::File::create_new(target).map_err(NodeError::at("create", target))?;
    }
    Ok(mounts::bind(&part, target)?)
}

fn resolve(volume: &Path, path: &str) -> Result<OwnedFd, SubPathError> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(volume, flags | OFlag::O_DIRECTORY, Mode::empty())
        .map_err(NodeError::at("open", volume))?;
    let place = volume.join(path);
    let failed = |errno: Errno| {
        if errno == Errno::EXDEV || errno == Errno::ELOOP {
            return SubPathError::Escape { path: path.to_owned(), volume: volume.to_owned() };
        }
        NodeError::at("open", &place)(errno).into()
    };
    let beneath = |path: &Path| {
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root, path, how)
    };
    match beneath(Path::new(path)) {
        Err(Errno::ENOENT) => {}
        result => return result.map_err(failed),
    }
    let mut known = PathBuf::from(".");
    for part in Path::new(path).components() {
        let parent = beneath(&known).map_err(failed)?;
        known.push(part);
        match beneath(&known) {
            Ok(_) => {}
            Err(Errno::ENOENT) => {
                let name = Path::new(part.as_os_str());
                mkdirat(&parent, name, Mode::from_bits_truncate(0o750))
                    .map_err(NodeError::at("create", &place))?;
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
    beneath(&known).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn escapes(volume: &Path, path: &str) -> bool {
        matches!(resolve(volume, path), Err(SubPathError::Escape { .. }))
    }

    #[test]
    fn stays_in_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(root.path().join("outside"), "x").unwrap();
        symlink("/etc/passwd", volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("relative")).unwrap();
        symlink("..", volume.join("up")).unwrap();
        symlink("loop", volume.join("loop")).unwrap();
        symlink("real", volume.join("inside")).unwrap();
        for path in [
            "absolute",
            "relative",
            "up",
            "up/outside",
            "up/new/deep",
            "loop",
            "../outside",
            "/etc",
        ] {
            assert!(escapes(&volume, path), "{path}");
        }
        resolve(&volume, "real/deep/er").unwrap();
        assert!(volume.join("real/deep/er").is_dir());
        resolve(&volume, "inside/deep").unwrap();
        assert!(!root.path().join("new").exists());
    }
}
