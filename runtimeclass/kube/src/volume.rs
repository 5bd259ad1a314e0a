//! Volumes.

use crate::object::DataSource;

/// A volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its path in the document, such as `spec.volumes[0]`.
    pub path: String,
    /// Unique in the Pod.
    pub name: String,
    /// What it is made of.
    pub source: VolumeSource,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// `emptyDir`: a directory on the node's disk.
    EmptyDir,
    /// `emptyDir` with `medium: Memory`: a tmpfs.
    Memory {
        /// `sizeLimit`, in bytes.
        size: Option<i64>,
    },
    /// `hostPath`: a path of the node.
    HostPath {
        /// Absolute, without `..`.
        path: String,
        /// What must be there.
        kind: HostPathType,
    },
    /// `configMap` or `secret`: files.
    Data {
        /// The object.
        source: DataSource,
        /// The keys that become files; `None` for all of them.
        items: Option<Vec<Item>>,
        /// The mode of files without one of their own.
        mode: u32,
    },
}

/// What a hostPath must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPathType {
    /// No type: anything that exists.
    Unchecked,
    /// A directory; created if missing.
    DirectoryOrCreate,
    /// An existing directory.
    Directory,
    /// A regular file; created empty if missing.
    FileOrCreate,
    /// An existing regular file.
    File,
    /// An existing Unix socket.
    Socket,
    /// An existing character device.
    CharDevice,
    /// An existing block device.
    BlockDevice,
}

/// One key that becomes one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key in the ConfigMap or Secret.
    pub key: String,
    /// Relative, without `..`.
    pub path: String,
    /// The file's own mode.
    pub mode: Option<u32>,
}
