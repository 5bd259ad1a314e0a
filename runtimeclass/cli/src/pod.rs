//! From a checked Pod to the messages of CRI, as the kubelet fills them. Nothing here touches the node.

mod container;
mod dns;
mod env;
mod expand;
mod hosts;
mod resources;
mod sandbox;
mod security;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub(crate) use container::{ContainerFacts, ImageFacts, container_config, sub_path, volume_mount};
pub(crate) use expand::expand;
pub(crate) use hosts::hosts_file;
pub(crate) use resources::{CPU_PERIOD, PodLimits, pod_limits};
pub(crate) use sandbox::{handler, sandbox_config};

use crate::manifest::{Container, Manifest, Pod};

/// The label that marks every sandbox and container of play.
pub(crate) const PLAY_LABEL: &str = "io.bulkhead.play";
/// The label of the Pod's name, which is the kubelet's.
pub(crate) const NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The label of the Pod's namespace, which is the kubelet's.
pub(crate) const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The label of the Pod's uid, which is the kubelet's.
pub(crate) const UID_LABEL: &str = "io.kubernetes.pod.uid";
/// The label of a container's name, which is the kubelet's.
pub(crate) const CONTAINER_LABEL: &str = "io.kubernetes.container.name";
/// The annotation with the Pod's directory on this node.
pub(crate) const DIRECTORY_ANNOTATION: &str = "io.bulkhead.play/directory";
/// The annotation with the seconds between SIGTERM and SIGKILL.
pub(crate) const GRACE_ANNOTATION: &str = "io.bulkhead.play/grace-seconds";
/// The annotation of a container that has a terminal, which CRI does not tell afterwards.
pub(crate) const TTY_ANNOTATION: &str = "io.bulkhead.play/tty";

/// What the conversion must know of the node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    /// The node's name, which is its hostname.
    pub(crate) name: String,
    /// The node's memory in bytes, by which the OOM score is computed.
    pub(crate) memory: i64,
    /// The text of the node's `/etc/resolv.conf`.
    pub(crate) resolv_conf: String,
    /// The directory to which localhost seccomp profiles are relative.
    pub(crate) seccomp_root: PathBuf,
}

/// Where one Pod lives on this node.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// The Pod's uid.
    pub(crate) uid: String,
    /// The Pod's directory.
    pub(crate) directory: PathBuf,
    /// The Pod's parent cgroup.
    pub(crate) cgroup_parent: String,
}

/// Everything that the conversion of one Pod reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) pod: &'a Pod,
    pub(crate) node: &'a NodeFacts,
    pub(crate) placement: &'a Placement,
}

/// Why a container cannot be described to the runtime.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConvertError {
    /// The user would be root.
    #[error("{path}: runAsNonRoot is true, but {why}; set runAsUser to another user than 0")]
    Root {
        /// The container's place.
        path: String,
        /// Where root comes from.
        why: String,
    },
    /// A Secret's bytes cannot be a variable.
    #[error(
        "{path}: the value of key {key:?} is not UTF-8, so it cannot be the variable {name:?}; mount it as a file"
    )]
    NotText {
        /// The reference's place.
        path: String,
        /// The key.
        key: String,
        /// The variable.
        name: String,
    },
    /// A subPathExpr names a variable that is not set.
    #[error("{path}.subPathExpr: {expression:?} names a variable that is not set")]
    Expression {
        /// The mount's place.
        path: String,
        /// The expression.
        expression: String,
    },
    /// A subPathExpr leads out of its volume once expanded.
    #[error("{path}.subPathExpr: {expanded:?} leads out of the volume")]
    Escape {
        /// The mount's place.
        path: String,
        /// The expanded path.
        expanded: String,
    },
}

/// The directory of a container's log file, relative to the Pod's log directory.
pub(crate) fn log_path(container: &Container) -> String {
    format!("{}/0.log", container.name)
}
