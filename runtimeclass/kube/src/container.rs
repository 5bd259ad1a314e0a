//! Containers.

use crate::object::DataSource;
use crate::resources::Resources;
use crate::security::ContainerSecurity;

/// A container or init container.
#[derive(Debug)]
pub struct Container {
    /// Its path in the document, such as `spec.containers[0]`.
    pub path: String,
    /// Unique among the Pod's containers and init containers.
    pub name: String,
    /// The image reference as written.
    pub image: String,
    /// `imagePullPolicy`.
    pub pull: Option<PullPolicy>,
    /// `command`; replaces the image's entrypoint unless empty.
    pub command: Vec<String>,
    /// `args`; replaces the image's command unless empty.
    pub args: Vec<String>,
    /// `workingDir`.
    pub working_dir: Option<String>,
    /// `envFrom`.
    pub env_from: Vec<EnvFrom>,
    /// `env`.
    pub env: Vec<EnvVar>,
    /// `volumeMounts`.
    pub mounts: Vec<VolumeMount>,
    /// `ports`.
    pub ports: Vec<Port>,
    /// `resources`.
    pub resources: Resources,
    /// `securityContext`.
    pub security: ContainerSecurity,
    /// `terminationMessagePath`.
    pub termination_message_path: String,
    /// `stdin`.
    pub stdin: bool,
    /// `stdinOnce`.
    pub stdin_once: bool,
    /// `tty`.
    pub tty: bool,
}

/// When to pull an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// `IfNotPresent`: only if this node does not have the image.
    Missing,
    /// `Never`: fail if this node does not have the image.
    Never,
    /// `Always`: ask the registry every time.
    Always,
}

/// A variable.
#[derive(Clone, Debug)]
pub struct EnvVar {
    /// Printable ASCII without `=`.
    pub name: String,
    /// `value` or `valueFrom`.
    pub value: EnvValue,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug)]
pub enum EnvValue {
    /// The text, in which `$(NAME)` is expanded.
    Text(String),
    /// One key of a ConfigMap or Secret.
    Key {
        /// The object.
        source: DataSource,
        /// The key in it.
        key: String,
    },
    /// A field of the Pod.
    Field(PodField),
}

/// Variables from all keys of a ConfigMap or Secret.
#[derive(Clone, Debug)]
pub struct EnvFrom {
    /// Precedes each key to make the variable's name.
    pub prefix: String,
    /// The object.
    pub source: DataSource,
}

/// What `fieldRef` can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodField {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `metadata.labels['KEY']`.
    Label(String),
    /// `metadata.annotations['KEY']`.
    Annotation(String),
    /// `spec.nodeName`.
    NodeName,
    /// `spec.serviceAccountName`.
    ServiceAccount,
    /// `status.podIP`.
    PodIp,
    /// `status.podIPs`.
    PodIps,
}

/// A volume's place in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// Its path in the document, such as `spec.containers[0].volumeMounts[1]`.
    pub path: String,
    /// The volume's name.
    pub volume: String,
    /// The absolute path in the container.
    pub target: String,
    /// `readOnly`.
    pub read_only: bool,
    /// `subPath` or `subPathExpr`.
    pub sub_path: Option<SubPath>,
    /// `mountPropagation`.
    pub propagation: Propagation,
}

/// Which part of the volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubPath {
    /// `subPath`: relative, without `..`.
    Plain(String),
    /// `subPathExpr`: with `$(NAME)` to expand.
    Expression(String),
}

/// How later mounts propagate between the node and the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `None`.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`.
    Bidirectional,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `containerPort`, 1 to 65535.
    pub container: i32,
    /// `hostPort`, 1 to 65535.
    pub host: Option<i32>,
    /// `hostIP`; empty for all addresses.
    pub host_ip: String,
    /// `protocol`.
    pub protocol: Protocol,
}

/// A port's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocols' own names")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}
