//! Kubernetes YAML to checked objects: Pods with the Secrets, ConfigMaps and RuntimeClasses that they name.
//!
//! Every field is either represented in these types or reported. Reading never stops at the first fault: everything
//! that is wrong or not supported is found in one pass, each with its document, path and value.

#![forbid(unsafe_code)]

mod check;
mod container;
mod document;
mod fields;
mod findings;
mod manifest;
mod names;
mod node;
mod object;
mod pod;
mod quantity;
mod read;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod volume;

pub use container::{
    Container, EnvFrom, EnvValue, EnvVar, PodField, Port, Propagation, Protocol, PullPolicy,
    SubPath, VolumeMount,
};
pub use document::{ReadError, read_file, read_files, read_text};
pub use findings::{Fault, Findings};
pub use manifest::Manifest;
pub use object::{ConfigMap, DataKind, DataSource, Metadata, RuntimeClass, Secret};
pub use pod::{Dns, HostAlias, Pod};
pub use quantity::{Quantity, QuantityError};
pub use resources::{Amounts, Resources};
pub use security::{ContainerSecurity, Identity, PodSecurity, Profile, SeLinux};
pub use volume::{HostPathType, Item, Volume, VolumeSource};
