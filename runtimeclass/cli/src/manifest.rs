//! What the documents say, checked: the objects that play understands.
//!
//! Everything here was read from YAML by [`crate::yaml`]; nothing has been resolved against this node yet.

mod check;

use std::collections::BTreeMap;

use crate::quantity::Quantity;

/// All objects of all files.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) pods: Vec<Pod>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) config_maps: Vec<ConfigMap>,
    pub(crate) runtime_classes: Vec<RuntimeClass>,
}

/// An object's name and labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl std::fmt::Display for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Secret.
#[derive(Debug)]
pub(crate) struct Secret {
    pub(crate) document: String,
    pub(crate) meta: Metadata,
    pub(crate) kind: String,
    pub(crate) data: BTreeMap<String, sandbox_core::Secret>,
}

/// A ConfigMap.
#[derive(Debug)]
pub(crate) struct ConfigMap {
    pub(crate) document: String,
    pub(crate) meta: Metadata,
    pub(crate) data: BTreeMap<String, String>,
    pub(crate) binary: BTreeMap<String, Vec<u8>>,
}

impl ConfigMap {
    /// A key's bytes.
    pub(crate) fn bytes(&self, key: &str) -> Option<&[u8]> {
        let text = self.data.get(key).map(String::as_bytes);
        text.or_else(|| self.binary.get(key).map(Vec::as_slice))
    }
}

/// A RuntimeClass.
#[derive(Debug)]
pub(crate) struct RuntimeClass {
    pub(crate) document: String,
    pub(crate) meta: Metadata,
    pub(crate) handler: String,
    pub(crate) overhead: Amounts,
}

/// A Pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) document: String,
    pub(crate) meta: Metadata,
    pub(crate) runtime_class: Option<String>,
    pub(crate) init_containers: Vec<Container>,
    pub(crate) containers: Vec<Container>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) security: PodSecurity,
    pub(crate) hostname: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) service_account: Option<String>,
    pub(crate) host_network: bool,
    pub(crate) host_pid: bool,
    pub(crate) host_ipc: bool,
    pub(crate) share_process_namespace: bool,
    pub(crate) dns: Dns,
    pub(crate) host_aliases: Vec<HostAlias>,
    pub(crate) image_pull_secrets: Vec<String>,
    pub(crate) grace_seconds: i64,
    pub(crate) deadline_seconds: Option<i64>,
    pub(crate) overhead: Option<Amounts>,
}

impl Pod {
    /// Every container, in the order in which it starts.
    pub(crate) fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }
}

/// `dnsPolicy` and `dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    /// `dnsPolicy: None`: only what `dnsConfig` says, nothing of the node's.
    pub(crate) only_config: bool,
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// A line for `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostAlias {
    pub(crate) ip: String,
    pub(crate) hostnames: Vec<String>,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its place, such as `spec.containers[0]`.
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) pull: Option<PullPolicy>,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) env_from: Vec<EnvFrom>,
    pub(crate) env: Vec<EnvVar>,
    pub(crate) mounts: Vec<VolumeMount>,
    pub(crate) ports: Vec<Port>,
    pub(crate) resources: Resources,
    pub(crate) security: ContainerSecurity,
    pub(crate) termination_message_path: String,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
}

/// When to pull an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullPolicy {
    /// Only if this node has no such image.
    Missing,
    /// Never: fail if this node has no such image.
    Never,
    /// Ask the registry every time.
    Always,
}

/// A variable.
#[derive(Clone, Debug)]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: EnvValue,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug)]
pub(crate) enum EnvValue {
    /// The text, in which `$(NAME)` is expanded.
    Text(String),
    /// One key of a ConfigMap or Secret.
    Key { source: DataSource, key: String },
    /// A field of the Pod.
    Field(PodField),
}

/// Variables from all keys of a ConfigMap or Secret.
#[derive(Clone, Debug)]
pub(crate) struct EnvFrom {
    pub(crate) prefix: String,
    pub(crate) source: DataSource,
}

/// A reference to a ConfigMap or Secret of the Pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataSource {
    /// The place of the reference, for messages.
    pub(crate) path: String,
    pub(crate) kind: DataKind,
    pub(crate) name: String,
    pub(crate) optional: bool,
}

/// Which of the two kinds that hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataKind {
    ConfigMap,
    Secret,
}

impl std::fmt::Display for DataKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

/// What `fieldRef` can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodField {
    Name,
    Namespace,
    Uid,
    Label(String),
    Annotation(String),
    NodeName,
    ServiceAccount,
    PodIp,
    PodIps,
}

/// A volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    /// Its place, such as `spec.volumes[0]`.
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) source: VolumeSource,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeSource {
    /// A directory on the node's disk.
    EmptyDir,
    /// A tmpfs, with a size limit in bytes.
    Memory { size: Option<i64> },
    /// A path of the node.
    HostPath { path: String, kind: HostPathType },
    /// Files from a ConfigMap or Secret.
    Data { source: DataSource, items: Option<Vec<Item>>, mode: u32 },
}

/// What a hostPath must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostPathType {
    Unchecked,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One key that becomes one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: String,
    /// Relative, without `..`.
    pub(crate) path: String,
    pub(crate) mode: Option<u32>,
}

/// A volume's place in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeMount {
    /// Its place, such as `spec.containers[0].volumeMounts[1]`.
    pub(crate) path: String,
    pub(crate) volume: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) sub_path: Option<SubPath>,
    pub(crate) propagation: Propagation,
}

/// Which part of the volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SubPath {
    Plain(String),
    /// With `$(NAME)` to expand.
    Expression(String),
}

/// How later mounts travel between the node and the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) container: i32,
    pub(crate) host: Option<i32>,
    pub(crate) host_ip: String,
    pub(crate) protocol: Protocol,
}

/// A port's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// Amounts of the two resources that play hands to the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) cpu: Option<Quantity>,
    pub(crate) memory: Option<Quantity>,
}

/// `resources`, with the API server's default applied: a request that is not set equals the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) requests: Amounts,
    pub(crate) limits: Amounts,
}

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

/// `seLinuxOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeLinux {
    pub(crate) user: String,
    pub(crate) role: String,
    pub(crate) kind: String,
    pub(crate) level: String,
}

/// What Pod and container can both say; a container's word wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: Option<i64>,
    pub(crate) group: Option<i64>,
    pub(crate) non_root: Option<bool>,
    pub(crate) seccomp: Option<Profile>,
    pub(crate) apparmor: Option<Profile>,
    pub(crate) selinux: Option<SeLinux>,
}

/// The Pod's `securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodSecurity {
    pub(crate) identity: Identity,
    pub(crate) fs_group: Option<i64>,
    pub(crate) supplemental_groups: Vec<i64>,
    /// `supplementalGroupsPolicy: Strict`.
    pub(crate) strict_groups: bool,
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// A container's `securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerSecurity {
    pub(crate) identity: Identity,
    pub(crate) privileged: bool,
    pub(crate) no_new_privs: bool,
    pub(crate) add: Vec<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) read_only_root: bool,
    pub(crate) unmasked_proc: bool,
}

impl Manifest {
    /// The Secret of that name.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        self.secrets.iter().find(|it| it.meta.name == name && it.meta.namespace == namespace)
    }

    /// The ConfigMap of that name.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        self.config_maps.iter().find(|it| it.meta.name == name && it.meta.namespace == namespace)
    }

    /// The RuntimeClass of that name.
    pub(crate) fn runtime_class(&self, name: &str) -> Option<&RuntimeClass> {
        self.runtime_classes.iter().find(|it| it.meta.name == name)
    }
}
