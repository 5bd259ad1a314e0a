//! `PodSandboxConfig`.

use std::collections::HashMap;

use k8s_cri::v1::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};
use kube_manifest::{Pod, Port};

use super::input::Source;
use super::{dns, resources, security};
use crate::labels::{
    DIRECTORY_ANNOTATION, GRACE_ANNOTATION, NAME_LABEL, NAMESPACE_LABEL, PLAY_LABEL, UID_LABEL,
};

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
        hostname: if pod.host_network { String::new() } else { pod.hostname().to_owned() },
        log_directory: placement.directory.join("logs").display().to_string(),
        dns_config: dns::dns(&pod.dns, &node.resolv_conf),
        port_mappings: port_mappings(pod),
        labels: labels(source),
        annotations: annotations(source),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: placement.cgroup_parent.clone(),
            security_context: Some(security::sandbox(pod)),
            sysctls: pod.security.sysctls.clone().into_iter().collect(),
            overhead: Some(resources::overhead(manifest.overhead(pod))),
            resources: Some(resources::pod_sum(pod)),
        }),
        windows: None,
    }
}

/// The labels by which sandbox and containers are found.
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
    let mapping = |port: &Port| {
        let protocol = match port.protocol {
            kube_manifest::Protocol::Tcp => Protocol::Tcp,
            kube_manifest::Protocol::Udp => Protocol::Udp,
            kube_manifest::Protocol::Sctp => Protocol::Sctp,
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
