//! Reading config.json, whose fields that this crate does not know stay as they are.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// kubelet's directory of emptyDir volumes.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Whether a mount is a bind, which runtimes also know by its option.
pub(crate) fn is_bind(mount: &Value) -> bool {
    mount["type"] == "bind" || options(mount).any(|o| o == "bind" || o == "rbind")
}

/// A bind's source; relative ones start at the bundle (OCI runtime specification, "Mounts").
pub(crate) fn bind_source(mount: &Value, bundle: &Path) -> Option<PathBuf> {
    mount["source"].as_str().filter(|s| !s.is_empty()).map(|source| bundle.join(source))
}

/// A mount's options.
pub(crate) fn options(mount: &Value) -> impl Iterator<Item = &str> {
    mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a path is below kubelet's emptyDir volumes.
pub(crate) fn in_empty_dir(source: &Path) -> bool {
    source.components().any(|part| part.as_os_str() == EMPTY_DIR)
}

/// Numbers of the block devices that a configuration lists.
pub(crate) fn listed_blocks(spec: &Value) -> Vec<(u64, u64)> {
    let listed = spec.pointer("/linux/devices").and_then(Value::as_array);
    let blocks = listed.into_iter().flatten().filter(|device| device["type"] == "b");
    blocks.filter_map(numbers).collect()
}

/// A device's major and minor number.
pub(crate) fn numbers(device: &Value) -> Option<(u64, u64)> {
    // Go leaves a zero out.
    let number = |key: &str| match &device[key] {
        Value::Null => Some(0),
        value => value.as_u64(),
    };
    Some((number("major")?, number("minor")?))
}
