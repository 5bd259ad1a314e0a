//! The two `securityContext`s.

use std::collections::BTreeMap;

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A seccomp profile's path relative to the kubelet's directory of profiles, or an AppArmor profile's name.
    Localhost(String),
}

/// `seLinuxOptions`; empty where not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the parts of an SELinux label by their own names; `kind` is `type`"
)]
pub struct SeLinux {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// What both a Pod and a container can set; a container's value takes precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `runAsUser`.
    pub user: Option<i64>,
    /// `runAsGroup`.
    pub group: Option<i64>,
    /// `runAsNonRoot`.
    pub non_root: Option<bool>,
    /// `seccompProfile`.
    pub seccomp: Option<Profile>,
    /// `appArmorProfile`.
    pub apparmor: Option<Profile>,
    /// `seLinuxOptions`.
    pub selinux: Option<SeLinux>,
}

/// The Pod's `securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSecurity {
    /// The part that containers can override.
    pub identity: Identity,
    /// `fsGroup`.
    pub fs_group: Option<i64>,
    /// `supplementalGroups`.
    pub supplemental_groups: Vec<i64>,
    /// `supplementalGroupsPolicy: Strict`.
    pub strict_groups: bool,
    /// `sysctls`, names with dots.
    pub sysctls: BTreeMap<String, String>,
}

/// A container's `securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSecurity {
    /// The part that overrides the Pod's.
    pub identity: Identity,
    /// `privileged`.
    pub privileged: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// `capabilities.add`, without `CAP_`.
    pub add: Vec<String>,
    /// `capabilities.drop`, without `CAP_`.
    pub drop: Vec<String>,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
}
