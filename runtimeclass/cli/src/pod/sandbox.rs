//! `PodSandboxConfig`.

use std::collections::HashMap;

use k8s_cri::v1::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

use super::{
    DIRECTORY_ANNOTATION, GRACE_ANNOTATION, NAME_LABEL, NAMESPACE_LABEL, PLAY_LABEL, Source,
    UID_LABEL, dns, resources, security,
};
use crate::manifest::{self, Amounts, Manifest, Pod};

/// The runtime handler: the RuntimeClass's where its document is in the files, else the name itself, else the
/// runtime's default (the empty name).
pub(crate) fn handler(manifest: &Manifest, pod: &Pod) -> String {
    let name = pod.runtime_class.clone().unwrap_or_default();
    manifest.runtime_class(&name).map_or(name, |class| class.handler.clone())
}

/// The overhead of the Pod: its own word, else its RuntimeClass's.
pub(super) fn overhead(manifest: &Manifest, pod: &Pod) -> Amounts {
    let class = pod.runtime_class.as_deref().and_then(|name| manifest.runtime_class(name));
    pod.overhead.or(class.map(|class| class.overhead)).unwrap_or_default()
}

/// The Pod's hostname inside the Pod.
pub(super) fn hostname(pod: &Pod) -> String {
    pod.hostname.clone().unwrap_or_else(|| pod.meta.name.clone())
}

/// The message that creates the Pod's sandbox.
pub(crate) fn sandbox_config(source: Source<'_>) -> PodSandboxConfig {
    let Source { manifest, pod, node, placement } = source;
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.meta.name.clone(),
            namespace: pod.meta.namespace.clone(),
            uid: placement.uid.clone(),
            attempt: 0,
        }),
        hostname: if pod.host_network { String::new() } else { hostname(pod) },
        log_directory: placement.directory.join("logs").display().to_string(),
        dns_config: dns::dns(&pod.dns, &node.resolv_conf),
        port_mappings: port_mappings(pod),
        labels: labels(source),
        annotations: annotations(source),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: placement.cgroup_parent.clone(),
            security_context: Some(security::sandbox(pod)),
            sysctls: pod.security.sysctls.clone().into_iter().collect(),
            overhead: Some(resources::overhead(overhead(manifest, pod))),
            resources: Some(resources::pod_sum(pod)),
        }),
        windows: None,
    }
}

/// The labels by which sandbox and containers are found again.
pub(super) fn labels(source: Source<'_>) -> HashMap<String, String> {
    let meta = &source.pod.meta;
    let mut labels: HashMap<String, String> = meta.labels.clone().into_iter().collect();
    for (key, value) in [
        (PLAY_LABEL, "true"),
        (NAME_LABEL, &meta.name),
        (NAMESPACE_LABEL, &meta.namespace),
        (UID_LABEL, &source.placement.uid),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

fn annotations(source: Source<'_>) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> =
        source.pod.meta.annotations.clone().into_iter().collect();
    let placement = source.placement;
    for (key, value) in [
        (DIRECTORY_ANNOTATION, placement.directory.display().to_string()),
        (GRACE_ANNOTATION, source.pod.grace_seconds.to_string()),
    ] {
        annotations.insert(key.to_owned(), value);
    }
    annotations
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.host_network {
        return Vec::new();
    }
    let ports = pod.containers.iter().flat_map(|container| &container.ports);
    let mapping = |port: &manifest::Port| {
        let protocol = match port.protocol {
            manifest::Protocol::Tcp => Protocol::Tcp,
            manifest::Protocol::Udp => Protocol::Udp,
            manifest::Protocol::Sctp => Protocol::Sctp,
        };
        Some(PortMapping {
            protocol: protocol.into(),
            container_port: port.container,
            host_port: port.host?,
            host_ip: port.host_ip.clone(),
        })
    };
    ports.filter_map(mapping).collect()
}
