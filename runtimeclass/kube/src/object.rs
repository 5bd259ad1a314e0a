//! Objects without a spec: metadata, Secrets, ConfigMaps and RuntimeClasses.

use std::collections::BTreeMap;
use std::fmt;

use crate::resources::Amounts;

/// An object's `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Empty only in an object with faults.
    pub name: String,
    /// `default` where the document sets none.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Secret.
#[derive(Debug)]
pub struct Secret {
    /// Where it was read, for messages: file, document and name.
    pub document: String,
    /// `metadata`.
    pub meta: Metadata,
    /// `type`; `Opaque` where the document sets none.
    pub kind: String,
    /// `data` decoded, overridden by `stringData`.
    pub data: BTreeMap<String, sandbox_core::Secret>,
}

/// A ConfigMap.
#[derive(Debug)]
pub struct ConfigMap {
    /// Where it was read, for messages: file, document and name.
    pub document: String,
    /// `metadata`.
    pub meta: Metadata,
    /// `data`.
    pub data: BTreeMap<String, String>,
    /// `binaryData`, decoded; shares no key with `data`.
    pub binary: BTreeMap<String, Vec<u8>>,
}

impl ConfigMap {
    /// A key's bytes, from `data` or `binaryData`.
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        let text = self.data.get(key).map(String::as_bytes);
        text.or_else(|| self.binary.get(key).map(Vec::as_slice))
    }
}

/// A RuntimeClass.
#[derive(Debug)]
pub struct RuntimeClass {
    /// Where it was read, for messages: file, document and name.
    pub document: String,
    /// `metadata`; RuntimeClasses have no namespace, so that field means nothing.
    pub meta: Metadata,
    /// The handler's name in the runtime's configuration.
    pub handler: String,
    /// `overhead.podFixed`.
    pub overhead: Amounts,
}

/// A reference to a ConfigMap or Secret of the Pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSource {
    /// The path of the reference, for messages.
    pub path: String,
    /// Which of the two kinds.
    pub kind: DataKind,
    /// The object's name.
    pub name: String,
    /// Whether the object, or its key, may be missing.
    pub optional: bool,
}

/// The two kinds of objects that hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Secret.
    Secret,
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}
