//! Security contexts.

use std::path::Path;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
};
use kube_manifest::{Container, Pod, Profile, SeLinux};

use super::input::{ContainerFacts, ConvertError, Source};

/// Hidden from containers unless `procMount: Unmasked`: the kubelet's list.
const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Read-only for containers unless `procMount: Unmasked`: the kubelet's list.
const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The sandbox's own context.
pub(super) fn sandbox(pod: &Pod) -> LinuxSandboxSecurityContext {
    let identity = &pod.security.identity;
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: identity.selinux.as_ref().map(selinux),
        run_as_user: identity.user.map(number),
        // A group without a user is refused by runtimes, whose sandbox image names its own user.
        run_as_group: identity.group.filter(|_| identity.user.is_some()).map(number),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        privileged: pod.all_containers().any(|container| container.security.privileged),
        seccomp: Some(profile(&Profile::RuntimeDefault, Path::new(""))),
        ..LinuxSandboxSecurityContext::default()
    }
}

/// A container's context: its own values, else the Pod's, else the image's.
pub(super) fn container(
    source: Source<'_>,
    container: &Container,
    facts: &ContainerFacts<'_>,
) -> Result<LinuxContainerSecurityContext, ConvertError> {
    let own = &container.security.identity;
    let pod = &source.pod.security.identity;
    let user = own.user.or(pod.user);
    if own.non_root.or(pod.non_root) == Some(true) {
        refuse_root(container, user, facts)?;
    }
    let security = &container.security;
    let paths = |paths: &[&str]| {
        let shown = security.unmasked_proc || security.privileged;
        if shown { Vec::new() } else { paths.iter().map(|&path| path.to_owned()).collect() }
    };
    let seccomp = own.seccomp.as_ref().or(pod.seccomp.as_ref()).unwrap_or(&Profile::Unconfined);
    // Like the kubelet: the image's user by number or by name, and root where the image names none.
    let by_name = user.is_none() && facts.image.uid.is_none() && !facts.image.username.is_empty();
    let (user, username) = if by_name {
        (None, facts.image.username.clone())
    } else {
        (user.or(facts.image.uid).or(Some(0)), String::new())
    };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: security.add.clone(),
            drop_capabilities: security.drop.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces(source.pod)),
        selinux_options: own.selinux.as_ref().or(pod.selinux.as_ref()).map(selinux),
        run_as_user: user.map(number),
        run_as_username: username,
        run_as_group: own.group.or(pod.group).map(number),
        readonly_rootfs: security.read_only_root,
        supplemental_groups: groups(source.pod),
        supplemental_groups_policy: groups_policy(source.pod),
        no_new_privs: security.no_new_privs,
        masked_paths: paths(MASKED_PATHS),
        readonly_paths: paths(READONLY_PATHS),
        seccomp: Some(profile(seccomp, &source.node.seccomp_root)),
        apparmor: own
            .apparmor
            .as_ref()
            .or(pod.apparmor.as_ref())
            .map(|it| profile(it, Path::new(""))),
        ..LinuxContainerSecurityContext::default()
    })
}

fn refuse_root(
    container: &Container,
    user: Option<i64>,
    facts: &ContainerFacts<'_>,
) -> Result<(), ConvertError> {
    let image = &facts.image;
    let why = match (user, image.uid) {
        (Some(0), _) => "runAsUser is 0".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, Some(0)) => format!("image {:?} runs as root", container.image),
        (None, Some(_)) => return Ok(()),
        (None, None) if image.username.is_empty() => {
            format!("image {:?} runs as root", container.image)
        }
        (None, None) => {
            format!(
                "image {:?} runs as {:?}, whose uid is not known",
                container.image, image.username
            )
        }
    };
    Err(ConvertError::Root { path: format!("{}.securityContext", container.path), why })
}

fn namespaces(pod: &Pod) -> NamespaceOption {
    let node_or_pod = |host| if host { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = if pod.host_pid {
        NamespaceMode::Node
    } else if pod.share_process_namespace {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: node_or_pod(pod.host_network).into(),
        pid: pid.into(),
        ipc: node_or_pod(pod.host_ipc).into(),
        ..NamespaceOption::default()
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    pod.security.supplemental_groups.iter().copied().chain(pod.security.fs_group).collect()
}

fn groups_policy(pod: &Pod) -> i32 {
    if pod.security.strict_groups {
        SupplementalGroupsPolicy::Strict.into()
    } else {
        SupplementalGroupsPolicy::Merge.into()
    }
}

fn profile(profile: &Profile, root: &Path) -> SecurityProfile {
    let (kind, localhost_ref) = match profile {
        Profile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Profile::Unconfined => (ProfileType::Unconfined, String::new()),
        Profile::Localhost(file) => (ProfileType::Localhost, root.join(file).display().to_string()),
    };
    SecurityProfile { profile_type: kind.into(), localhost_ref }
}

fn selinux(options: &SeLinux) -> SeLinuxOption {
    SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}

fn number(value: i64) -> Int64Value {
    Int64Value { value }
}
