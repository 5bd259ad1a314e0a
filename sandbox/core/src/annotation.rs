//! Annotations and labels by which containerd and its clients group containers.

/// The annotation in which CRI says what part a container plays in its Pod.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The annotation in which CRI names the Pod's sandbox.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// The label by which containerd's own clients put containers into one shim.
pub const GROUP: &str = "io.containerd.runc.v2.group";
