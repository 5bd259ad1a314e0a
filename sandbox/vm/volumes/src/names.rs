//! Names of disks and volumes, the same for the host and the guest.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use serde_json::Value;
use vm_share::VOLUMES;

use crate::plan::SHARE_MOUNT;

/// A disk's id: the same for the same use of the same path, so that containers can share it.
pub(crate) fn disk_id(path: &Path, read_only: bool) -> String {
    format!("d{:016x}", hash(&(path, read_only)))
}

/// The path of the volume `name` in the guest.
pub(crate) fn shared_at(name: &str) -> String {
    format!("{SHARE_MOUNT}/{VOLUMES}/{name}")
}

/// Replaces the names of volumes in a planned configuration: each pair is a planned name and the
/// name under which the Pod has mounted the volume.
pub fn rename(spec: &mut Value, renamed: &[(String, String)]) {
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        let is_it = |(asked, _): &&(String, String)| mount["source"] == shared_at(asked);
        if let Some((_, name)) = renamed.iter().find(is_it) {
            mount["source"] = shared_at(name).into();
        }
    }
}

/// A number that stands for `value` in names.
pub(crate) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
