//! Files of ConfigMaps and Secrets, laid out as the kubelet lays them out.
//!
//! The files are in a directory of their own behind the link `..data`, and each name is a link into `..data`.
//! Programs that watch `..data` work here as they do in a cluster.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::node_error::NodeError;

/// What group members may do with a file of a read-only volume.
const GROUP_READ: u32 = 0o440;

/// One file.
pub(super) struct Entry {
    /// Relative to the volume, without `..`.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
}

/// Writes the files below `root`, owned by `group` where an fsGroup is set.
pub(super) fn write(root: &Path, entries: &[Entry], group: Option<u32>) -> Result<(), NodeError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let version = format!("..{}_{:09}", now.as_secs(), now.subsec_nanos());
    let directory = root.join(&version);
    make_directory(&directory, group)?;
    for entry in entries {
        write_one(&directory, entry, group)?;
    }
    link(&version, &root.join("..data"))?;
    let names: BTreeSet<&str> = entries
        .iter()
        .filter_map(|entry| entry.path.split('/').find(|part| !part.is_empty()))
        .collect();
    for name in names {
        link(&format!("..data/{name}"), &root.join(name))?;
    }
    own(root, group)
}

fn link(target: &str, at: &Path) -> Result<(), NodeError> {
    symlink(target, at).map_err(NodeError::at("create the link", at))
}

fn own(path: &Path, group: Option<u32>) -> Result<(), NodeError> {
    let Some(group) = group else { return Ok(()) };
    chown(path, None, Some(group)).map_err(NodeError::at("change the group of", path))
}

fn make_directory(path: &Path, group: Option<u32>) -> Result<(), NodeError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir(path).map_err(NodeError::at("create", path))?;
    own(path, group)?;
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(NodeError::at("change the mode of", path))
}

fn write_one(directory: &Path, entry: &Entry, group: Option<u32>) -> Result<(), NodeError> {
    let path = directory.join(&entry.path);
    let mut parent = directory.to_owned();
    for part in Path::new(&entry.path).parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        make_directory(&parent, group)?;
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(NodeError::at("create", &path))?;
    file.write_all(&entry.bytes).map_err(NodeError::at("write", &path))?;
    own(&path, group)?;
    let mode = if group.is_some() { entry.mode | GROUP_READ } else { entry.mode };
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(NodeError::at("change the mode of", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, mode: u32) -> Entry {
        Entry { path: path.to_owned(), mode, bytes: path.as_bytes().to_vec() }
    }

    #[test]
    fn names_are_links_through_data() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, &[entry("a", 0o644), entry("dir/sub/b", 0o400), entry("dir/c", 0o640)], None)
            .unwrap();
        let target = |name: &str| fs::read_link(root.join(name)).unwrap();
        assert_eq!(target("a"), Path::new("..data/a"));
        assert_eq!(target("dir"), Path::new("..data/dir"));
        assert!(target("..data").to_str().unwrap().starts_with(".."));
        for (path, mode) in [("a", 0o644), ("dir/sub/b", 0o400), ("dir/c", 0o640)] {
            assert_eq!(fs::read_to_string(root.join(path)).unwrap(), path);
            assert_eq!(fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn an_empty_volume_still_has_data() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[], None).unwrap();
        assert!(root.path().join("..data").is_dir());
    }
}
