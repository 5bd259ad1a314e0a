//! Labels and annotations of the sandboxes and containers that this crate creates.

/// The label that marks every sandbox and container of this crate.
pub(crate) const PLAY_LABEL: &str = "io.bulkhead.play";
/// The label with the Pod's name, which is the kubelet's.
pub const NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The label with the Pod's namespace, which is the kubelet's.
pub const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The label with the Pod's uid, which is the kubelet's.
pub(crate) const UID_LABEL: &str = "io.kubernetes.pod.uid";
/// The label with a container's name, which is the kubelet's.
pub const CONTAINER_LABEL: &str = "io.kubernetes.container.name";
/// The annotation with the Pod's directory on this node.
pub(crate) const DIRECTORY_ANNOTATION: &str = "io.bulkhead.play/directory";
/// The annotation with the seconds between SIGTERM and SIGKILL.
pub(crate) const GRACE_ANNOTATION: &str = "io.bulkhead.play/grace-seconds";
/// The annotation of a container with a terminal, since CRI's status does not have that.
pub const TTY_ANNOTATION: &str = "io.bulkhead.play/tty";
