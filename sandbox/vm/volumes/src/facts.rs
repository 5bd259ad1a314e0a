//! What the paths and devices of a configuration are on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{FsType, statfs};
use sandbox_core::RootfsMount;
use sandbox_host::mounts::{self, Mount, MountTable};
use serde_json::Value;

use crate::config_json::{bind_source, in_empty_dir, is_bind, listed_blocks};
use crate::error::PlanError;

/// Deadline for examining all paths: a volume's server may not answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// `linux/magic.h`.
const HUGETLBFS: i64 = 0x9584_58f6;

/// What is at the paths of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub(crate) sources: BTreeMap<PathBuf, Source>,
    /// Nodes of block devices, by major and minor number.
    pub(crate) blocks: BTreeMap<(u64, u64), PathBuf>,
    /// Sources below which something else is mounted.
    pub(crate) nesting: BTreeSet<PathBuf>,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing.
    Missing,
    /// A directory.
    Directory,
    /// The root of a tmpfs.
    Tmpfs(Tmpfs),
    /// A bind of a file or directory within a memory emptyDir: a subPath.
    MemoryPart,
    /// Huge pages.
    Huge,
    /// A regular file.
    File,
    /// A socket.
    Socket,
    /// A fifo.
    Fifo,
    /// A block device.
    Block,
    /// A character device.
    Character {
        /// Its major number.
        major: u64,
        /// Its minor number.
        minor: u64,
    },
}

/// A tmpfs as it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tmpfs {
    /// Its size in bytes; 0 without a bound.
    pub size: u64,
    /// The mode of its root.
    pub mode: u32,
    /// Its root's owner.
    pub uid: u32,
    /// Its root's group.
    pub gid: u32,
}

impl Facts {
    /// Examines every bind's source, every root file system image and every block device that
    /// the configuration names.
    ///
    /// # Errors
    ///
    /// When a path cannot be examined, or a file system does not answer in time.
    pub async fn gather(
        spec: &Value,
        bundle: &Path,
        rootfs: &[RootfsMount],
    ) -> Result<Self, PlanError> {
        let binds = spec["mounts"].as_array().into_iter().flatten().filter(|m| is_bind(m));
        let mut paths: Vec<PathBuf> =
            binds.filter_map(|mount| bind_source(mount, bundle)).collect();
        paths.extend(rootfs.iter().map(|mount| PathBuf::from(&mount.source)));
        let blocks = listed_blocks(spec);
        let work = tokio::task::spawn_blocking(move || Self::look(paths, blocks));
        match tokio::time::timeout(DEADLINE, work).await {
            Ok(Ok(facts)) => facts,
            Ok(Err(join)) => {
                Err(PlanError::Look { path: bundle.to_owned(), source: io::Error::from(join) })
            }
            Err(_) => Err(PlanError::Stalled(DEADLINE.as_secs())),
        }
    }

    fn look(paths: Vec<PathBuf>, blocks: Vec<(u64, u64)>) -> Result<Self, PlanError> {
        let table = MountTable::current()
            .map_err(|source| PlanError::Look { path: mounts::CURRENT.into(), source })?;
        let mut facts = Self::default();
        for path in paths.into_iter().filter(|path| path.is_absolute()) {
            let source = source(&path, &table)
                .map_err(|source| PlanError::Look { path: path.clone(), source })?;
            if any_below(&path, &table) {
                facts.nesting.insert(path.clone());
            }
            facts.sources.insert(path, source);
        }
        for (major, minor) in blocks {
            if let Some(node) = block_node(Path::new("/"), major, minor) {
                facts.blocks.insert((major, minor), node);
            }
        }
        Ok(facts)
    }

    /// Whether something is mounted below `path`.
    pub(crate) fn nests(&self, path: &Path) -> bool {
        self.nesting.contains(path)
    }

    /// What is at `path`.
    pub(crate) fn source(&self, path: &Path) -> Source {
        self.sources.get(path).copied().unwrap_or(Source::Missing)
    }
}

fn source(path: &Path, table: &MountTable) -> io::Result<Source> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Source::Missing),
        other => other?,
    };
    let kind = meta.file_type();
    let mounted = table.at(path);
    Ok(if mounted.as_ref().is_some_and(|mount| is_memory_part(mount, table)) {
        Source::MemoryPart
    } else if kind.is_dir() {
        directory(path, &meta, mounted)?
    } else if kind.is_socket() {
        Source::Socket
    } else if kind.is_fifo() {
        Source::Fifo
    } else if kind.is_block_device() {
        Source::Block
    } else if kind.is_char_device() {
        let rdev = meta.rdev();
        Source::Character { major: libc::major(rdev).into(), minor: libc::minor(rdev).into() }
    } else {
        Source::File
    })
}

fn directory(path: &Path, meta: &Metadata, mounted: Option<Mount<'_>>) -> io::Result<Source> {
    let Some(mounted) = mounted else { return Ok(Source::Directory) };
    let stat = statfs(path)?;
    if stat.filesystem_type() == FsType(HUGETLBFS) {
        return Ok(Source::Huge);
    }
    if mounted.kind != "tmpfs" || mounted.root != Path::new("/") {
        return Ok(Source::Directory);
    }
    Ok(Source::Tmpfs(Tmpfs {
        size: stat.blocks() * u64::try_from(stat.block_size()).unwrap_or(0),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

/// Whether there is a mount below `path`.
fn any_below(path: &Path, table: &MountTable) -> bool {
    table.below(path).any(|mount| mount.point != path)
}

/// Whether `mount` shows a part of a tmpfs whose root is a memory emptyDir.
fn is_memory_part(mount: &Mount<'_>, table: &MountTable) -> bool {
    let whole = |other: Mount<'_>| {
        other.device == mount.device && other.root == Path::new("/") && in_empty_dir(&other.point)
    };
    mount.kind == "tmpfs" && mount.root != Path::new("/") && table.iter().any(whole)
}

/// The node of a block device, by the kernel's name for it.
fn block_node(root: &Path, major: u64, minor: u64) -> Option<PathBuf> {
    let event = root.join(format!("sys/dev/block/{major}:{minor}/uevent"));
    let event = fs::read_to_string(event).ok()?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = root.join("dev").join(name);
    let rdev = fs::metadata(&node).ok()?.rdev();
    let same = u64::from(libc::major(rdev)) == major && u64::from(libc::minor(rdev)) == minor;
    same.then_some(node)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use serde_json::json;

    use super::*;

    #[test]
    fn parts_of_memory_volumes_and_mounts_below_a_path_are_found() {
        let table = "\
            30 1 0:40 / /v/kubernetes.io~empty-dir/a\\040b rw shared:3 - tmpfs tmpfs rw,size=1k\n\
            31 1 0:40 /sub /v/volume-subpaths/x rw - tmpfs tmpfs rw\n\
            34 1 0:50 / /v/kubernetes.io~secret/s rw - tmpfs tmpfs rw\n\
            35 1 0:50 /key /v/volume-subpaths/of-a-secret rw - tmpfs tmpfs rw\n\
            32 1 8:1 / /v/disk rw master:1 - ext4 /dev/sda1 rw\n";
        let table = &MountTable::parse(table).unwrap();
        let part = |path| is_memory_part(&table.at(Path::new(path)).unwrap(), table);
        assert!(part("/v/volume-subpaths/x"));
        assert!(!part("/v/volume-subpaths/of-a-secret"));
        assert!(!part("/v/kubernetes.io~empty-dir/a b"));
        let below = |path| any_below(Path::new(path), table);
        assert!(below("/v") && below("/v/volume-subpaths/") && below("/"));
        assert!(!below("/v/disk") && !below("/v/volume"));
    }

    #[tokio::test]
    async fn sources_are_classified() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        fs::create_dir(place("dir")).unwrap();
        fs::write(place("file"), "").unwrap();
        let _socket = UnixListener::bind(place("socket")).unwrap();
        nix::unistd::mkfifo(&place("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let names = ["dir", "file", "socket", "fifo", "none", "/dev/null"];
        let mounts: Vec<_> = names
            .iter()
            .map(|n| json!({"destination": "/x", "type": "bind", "source": place(n)}))
            .collect();
        let facts = Facts::gather(&json!({"mounts": mounts}), dir.path(), &[]).await.unwrap();
        let found: Vec<Source> = names.iter().map(|n| facts.source(&place(n))).collect();
        assert_eq!(
            found,
            [
                Source::Directory,
                Source::File,
                Source::Socket,
                Source::Fifo,
                Source::Missing,
                Source::Character { major: 1, minor: 3 },
            ]
        );
    }

    #[test]
    #[ignore = "needs shm"]
    fn a_tmpfs_has_its_size_and_owner() {
        let table = MountTable::current().unwrap();
        let found = source(Path::new("/dev/shm"), &table).unwrap();
        let Source::Tmpfs(found) = found else { panic!("/dev/shm is {found:?}") };
        assert_eq!((found.mode, found.uid), (0o1777, 0));
        assert!(found.size > 0);
    }

    #[test]
    #[ignore = "needs block-device"]
    fn block_devices_are_found_by_number() {
        let entries = fs::read_dir("/sys/dev/block").unwrap();
        let found = entries.flatten().find_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let (major, minor) = name.split_once(':').unwrap();
            let numbers = (major.parse().unwrap(), minor.parse().unwrap());
            Some((numbers, block_node(Path::new("/"), numbers.0, numbers.1)?))
        });
        let ((major, minor), node) = found.expect("a block device with a node");
        let rdev = fs::metadata(&node).unwrap().rdev();
        assert_eq!((u64::from(libc::major(rdev)), u64::from(libc::minor(rdev))), (major, minor));
        assert!(node.starts_with("/dev"), "{}", node.display());
    }

    #[test]
    fn an_unknown_block_device_has_no_node() {
        assert_eq!(block_node(Path::new("/"), 4000, 1), None);
    }
}
