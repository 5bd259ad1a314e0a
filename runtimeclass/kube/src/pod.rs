//! Pods.

use crate::container::Container;
use crate::object::Metadata;
use crate::resources::Amounts;
use crate::security::PodSecurity;
use crate::volume::Volume;

/// A Pod; fields are those of its `spec` unless documented otherwise.
#[derive(Debug)]
pub struct Pod {
    /// Where it was read, for messages: file, document and name.
    pub document: String,
    /// `metadata`.
    pub meta: Metadata,
    /// `runtimeClassName`.
    pub runtime_class: Option<String>,
    /// `initContainers`.
    pub init_containers: Vec<Container>,
    /// `containers`.
    pub containers: Vec<Container>,
    /// `volumes`.
    pub volumes: Vec<Volume>,
    /// `securityContext`.
    pub security: PodSecurity,
    /// `hostname`; see [`Pod::hostname`] for the default.
    pub hostname: Option<String>,
    /// `nodeName`.
    pub node_name: Option<String>,
    /// `serviceAccountName`, or the deprecated `serviceAccount`.
    pub service_account: Option<String>,
    /// `hostNetwork`.
    pub host_network: bool,
    /// `hostPID`.
    pub host_pid: bool,
    /// `hostIPC`.
    pub host_ipc: bool,
    /// `shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `dnsPolicy` and `dnsConfig`.
    pub dns: Dns,
    /// `hostAliases`.
    pub host_aliases: Vec<HostAlias>,
    /// The names in `imagePullSecrets`.
    pub image_pull_secrets: Vec<String>,
    /// `terminationGracePeriodSeconds`.
    pub grace_seconds: i64,
    /// `activeDeadlineSeconds`.
    pub deadline_seconds: Option<i64>,
    /// `overhead`; see [`crate::Manifest::overhead`] for that of the RuntimeClass.
    pub overhead: Option<Amounts>,
}

impl Pod {
    /// Every container, in the order in which they start.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The hostname inside the Pod: `spec.hostname`, else the Pod's name.
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.meta.name)
    }
}

/// `dnsPolicy` and `dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// `dnsPolicy: None`: only what `dnsConfig` lists, nothing of the node's.
    pub only_config: bool,
    /// `nameservers`.
    pub servers: Vec<String>,
    /// `searches`.
    pub searches: Vec<String>,
    /// `options` in the form of resolv.conf(5), such as `ndots:2`.
    pub options: Vec<String>,
}

/// One line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAlias {
    /// An IPv4 or IPv6 address.
    pub ip: String,
    /// The names of that address.
    pub hostnames: Vec<String>,
}
