//! A Pod's volumes on this node.

mod atomic;
mod hostpath;
mod subpath;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use kube_manifest::{
    DataKind, DataSource, HostPathType, Item, Manifest, Pod, Volume, VolumeSource,
};

use crate::mounts;
use crate::node_error::NodeError;
use atomic::Entry;
pub use subpath::SubPathError;
pub(crate) use subpath::bind_part;

/// Why a volume could not be created.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A system call failed.
    #[error("{path} (volume {name:?})")]
    Node {
        /// The volume's path in the document.
        path: String,
        /// The volume's name.
        name: String,
        /// The call's error.
        source: NodeError,
    },
    /// A hostPath does not match its type.
    #[error("{path} (volume {name:?}): {fault}")]
    HostPath {
        /// The volume's path in the document.
        path: String,
        /// The volume's name.
        name: String,
        /// The mismatch.
        fault: String,
    },
}

/// A volume that is ready to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// Where it is on the node.
    pub(crate) path: PathBuf,
    /// Whether containers may only read it: Secrets and ConfigMaps.
    pub(crate) read_only: bool,
}

/// Creates every volume of the Pod below `root`, which must be an empty directory.
pub(crate) fn prepare(
    manifest: &Manifest,
    pod: &Pod,
    root: &Path,
) -> Result<BTreeMap<String, Prepared>, VolumeError> {
    let mut prepared = BTreeMap::new();
    for volume in &pod.volumes {
        let volume_root = root.join(&volume.name);
        prepared.insert(volume.name.clone(), prepare_one(manifest, pod, volume, volume_root)?);
    }
    Ok(prepared)
}

fn prepare_one(
    manifest: &Manifest,
    pod: &Pod,
    volume: &Volume,
    root: PathBuf,
) -> Result<Prepared, VolumeError> {
    let host =
        |source| VolumeError::Node { path: volume.path.clone(), name: volume.name.clone(), source };
    let group = pod.security.fs_group.and_then(|group| u32::try_from(group).ok());
    match &volume.source {
        VolumeSource::EmptyDir => directory(&root, group).map_err(host)?,
        VolumeSource::Memory { size } => {
            fs::create_dir(&root).map_err(NodeError::at("create", &root)).map_err(host)?;
            mounts::mount_tmpfs(&root, 0o777, *size).map_err(host)?;
            open_to(&root, group).map_err(host)?;
        }
        VolumeSource::HostPath { path, kind } => return host_path(volume, path, *kind),
        VolumeSource::Data { source, items, mode } => {
            fs::create_dir(&root).map_err(NodeError::at("create", &root)).map_err(host)?;
            if source.kind == DataKind::Secret {
                mounts::mount_tmpfs(&root, 0o755, None).map_err(host)?;
            }
            let entries = entries(manifest, pod, source, items.as_deref(), *mode);
            atomic::write(&root, &entries, group).map_err(host)?;
            return Ok(Prepared { path: root, read_only: true });
        }
    }
    Ok(Prepared { path: root, read_only: false })
}

fn host_path(volume: &Volume, path: &str, kind: HostPathType) -> Result<Prepared, VolumeError> {
    let path = PathBuf::from(path);
    hostpath::check(&path, kind).map_err(|fault| VolumeError::HostPath {
        path: format!("{}.hostPath", volume.path),
        name: volume.name.clone(),
        fault,
    })?;
    Ok(Prepared { path, read_only: false })
}

fn directory(root: &Path, group: Option<u32>) -> Result<(), NodeError> {
    fs::create_dir(root).map_err(NodeError::at("create", root))?;
    open_to(root, group)
}

/// Makes the directory world-writable; with an fsGroup new files belong to the group.
fn open_to(root: &Path, group: Option<u32>) -> Result<(), NodeError> {
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if group.is_some() {
        chown(root, None, group).map_err(NodeError::at("change the group of", root))?;
    }
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(root, permissions).map_err(NodeError::at("change the mode of", root))
}

/// The files of a ConfigMap or Secret volume; none if an optional object is missing.
fn entries(
    manifest: &Manifest,
    pod: &Pod,
    source: &DataSource,
    items: Option<&[Item]>,
    default_mode: u32,
) -> Vec<Entry> {
    let data = bytes(manifest, pod, source);
    let entry = |path: &str, mode, bytes: &[u8]| Entry {
        path: path.to_owned(),
        mode,
        bytes: bytes.to_vec(),
    };
    match items {
        None => data.iter().map(|(key, bytes)| entry(key, default_mode, bytes)).collect(),
        Some(items) => {
            let find = |item: &Item| {
                let bytes = data.get(item.key.as_str())?;
                Some(entry(&item.path, item.mode.unwrap_or(default_mode), bytes))
            };
            items.iter().filter_map(find).collect()
        }
    }
}

fn bytes<'a>(
    manifest: &'a Manifest,
    pod: &Pod,
    source: &DataSource,
) -> BTreeMap<&'a str, &'a [u8]> {
    let namespace = &pod.meta.namespace;
    match source.kind {
        DataKind::ConfigMap => {
            let Some(map) = manifest.config_map(namespace, &source.name) else {
                return BTreeMap::new();
            };
            let text = map.data.iter().map(|(key, text)| (key.as_str(), text.as_bytes()));
            text.chain(map.binary.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice())))
                .collect()
        }
        DataKind::Secret => {
            let Some(secret) = manifest.secret(namespace, &source.name) else {
                return BTreeMap::new();
            };
            secret.data.iter().map(|(key, bytes)| (key.as_str(), bytes.expose())).collect()
        }
    }
}
