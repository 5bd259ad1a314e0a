//! What descriptions are made from, and why one cannot be made.

use std::path::PathBuf;

use kube_manifest::{Manifest, Pod};

use crate::node::NodeFacts;

/// A Pod's identity and place on this node.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The Pod's uid.
    pub uid: String,
    /// The Pod's directory.
    pub directory: PathBuf,
    /// The Pod's parent cgroup.
    pub cgroup_parent: String,
}

/// Everything that the description of one Pod is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) pod: &'a Pod,
    pub(crate) node: &'a NodeFacts,
    pub(crate) placement: &'a Placement,
}

/// Why a container cannot be described to the runtime.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The user would be root.
    #[error("{path}: runAsNonRoot is true, but {why}; set runAsUser to another user than 0")]
    Root {
        /// The container's path in the document.
        path: String,
        /// What makes it root.
        why: String,
    },
    /// The value in a Secret or ConfigMap is not text.
    #[error(
        "{path}: the value of key {key:?} is not UTF-8, so it cannot be the variable {name:?}; mount it as a file"
    )]
    NotText {
        /// The reference's path in the document.
        path: String,
        /// The key.
        key: String,
        /// The variable.
        name: String,
    },
    /// A subPathExpr names a variable that is not set.
    #[error("{path}.subPathExpr: {expression:?} names a variable that is not set")]
    Expression {
        /// The mount's path in the document.
        path: String,
        /// The expression.
        expression: String,
    },
    /// A subPathExpr leads out of its volume once expanded.
    #[error("{path}.subPathExpr: {expanded:?} leads out of the volume")]
    Escape {
        /// The mount's path in the document.
        path: String,
        /// The expanded path.
        expanded: String,
    },
}

/// An image on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageFacts {
    /// The runtime's id of the image.
    pub(crate) id: String,
    /// The image's user, if it is a number.
    pub(crate) uid: Option<i64>,
    /// The image's user, if it is a name.
    pub(crate) username: String,
}

/// What a container's description needs besides the manifest.
#[derive(Clone, Debug)]
pub(crate) struct ContainerFacts<'a> {
    pub(crate) image: ImageFacts,
    pub(crate) pod_ips: &'a [String],
}
