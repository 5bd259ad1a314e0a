//! Pods.

use super::{container, meta, resources, security, volume};
use crate::fields::Fields;
use crate::names;
use crate::pod::{Dns, HostAlias, Pod};

const UNSUPPORTED: &[(&str, &str)] = &[
    ("ephemeralContainers", "ephemeral containers need a kubelet"),
    ("resourceClaims", "dynamic resource allocation needs a cluster"),
    ("resources", "play does not apply Pod-level resources; set them on the containers"),
    ("hostnameOverride", "play supports hostname"),
];

/// Fields that only a scheduler, a controller or the API server reads.
const CLUSTER_ONLY: &[&str] = &[
    "nodeSelector",
    "affinity",
    "tolerations",
    "topologySpreadConstraints",
    "priority",
    "priorityClassName",
    "preemptionPolicy",
    "schedulerName",
    "schedulingGates",
    "readinessGates",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "subdomain",
];

/// Reads a Pod; `None`, after a fault, when there is no spec.
pub(crate) fn pod(document: &str, mut object: Fields<'_>) -> Option<Pod> {
    let meta = meta::metadata(&mut object, names::label);
    object.drop_cluster_only(&["status"]);
    let Some(mut spec) = object.fields("spec") else {
        object.fault("spec", "is required");
        object.finish();
        return None;
    };
    object.finish();
    switches(&mut spec);
    let mut flag = |key| spec.boolean(key).unwrap_or_default();
    let host_network = flag("hostNetwork");
    let host_pid = flag("hostPID");
    let host_ipc = flag("hostIPC");
    let share = flag("shareProcessNamespace");
    if share && host_pid {
        spec.fault("shareProcessNamespace", "must not be set together with hostPID");
    }
    let containers = spec.objects("containers").into_iter().map(container::container);
    let containers: Vec<_> = containers.collect();
    if containers.is_empty() {
        spec.fault("containers", "at least one container is required");
    }
    let old_account = spec.string("serviceAccount");
    let pod = Pod {
        document: document.to_owned(),
        meta,
        runtime_class: spec.checked("runtimeClassName", names::subdomain),
        init_containers: spec
            .objects("initContainers")
            .into_iter()
            .map(container::container)
            .collect(),
        containers,
        volumes: spec.objects("volumes").into_iter().filter_map(volume::volume).collect(),
        security: security::pod(&mut spec),
        hostname: spec.checked("hostname", names::label),
        node_name: spec.string("nodeName"),
        service_account: spec.string("serviceAccountName").or(old_account),
        host_network,
        host_pid,
        host_ipc,
        share_process_namespace: share,
        dns: dns(&mut spec),
        host_aliases: spec.objects("hostAliases").into_iter().map(host_alias).collect(),
        image_pull_secrets: spec.objects("imagePullSecrets").into_iter().map(reference).collect(),
        grace_seconds: spec.integer_in("terminationGracePeriodSeconds", 0..=86_400).unwrap_or(30),
        deadline_seconds: spec.integer_in("activeDeadlineSeconds", 1..=i64::from(u32::MAX)),
        overhead: spec.has("overhead").then(|| resources::amounts(&mut spec, "overhead")),
    };
    spec.drop_cluster_only(CLUSTER_ONLY);
    spec.finish_refusing(UNSUPPORTED);
    Some(pod)
}

/// Fields of which only some values are possible here.
fn switches(spec: &mut Fields<'_>) {
    let policies = [("Never", false), ("OnFailure", true), ("Always", true)];
    let unset = !spec.has("restartPolicy");
    if spec.word("restartPolicy", &policies) == Some(true) {
        spec.note("restartPolicy", "play runs containers once and does not restart them");
    } else if unset {
        let text = "defaults to Always, but play runs containers once; set it to Never to silence this note";
        spec.note("restartPolicy", text);
    }
    if let Some(mut os) = spec.fields("os") {
        os.word("name", &[("linux", ())]);
        os.finish();
    }
    if spec.boolean("hostUsers") == Some(false) {
        spec.fault("hostUsers", "play does not set up user namespaces; remove hostUsers: false");
    }
    if spec.boolean("setHostnameAsFQDN") == Some(true) {
        spec.fault("setHostnameAsFQDN", "play has no cluster domain; remove it");
    }
}

fn dns(spec: &mut Fields<'_>) -> Dns {
    let policies = [
        ("ClusterFirst", false),
        ("ClusterFirstWithHostNet", false),
        ("Default", false),
        ("None", true),
    ];
    let only_config = spec.word("dnsPolicy", &policies).unwrap_or_default();
    let Some(mut fields) = spec.fields("dnsConfig") else {
        if only_config {
            spec.fault("dnsConfig", "is required with dnsPolicy: None");
        }
        return Dns { only_config, ..Dns::default() };
    };
    let servers = fields.strings("nameservers");
    if only_config && servers.is_empty() {
        fields.fault("nameservers", "at least one is required with dnsPolicy: None");
    }
    let searches = fields.strings("searches");
    let option = |mut option: Fields<'_>| {
        let name = option.required("name");
        let value = option.string("value");
        option.finish();
        value.map_or_else(|| name.clone(), |value| format!("{name}:{value}"))
    };
    let options = fields.objects("options").into_iter().map(option).collect();
    fields.finish();
    Dns { only_config, servers, searches, options }
}

fn host_alias(mut fields: Fields<'_>) -> HostAlias {
    let ip = fields.required("ip");
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        fields.fault("ip", format!("{ip:?} is not an IP address"));
    }
    let hostnames = fields.strings("hostnames");
    fields.finish();
    HostAlias { ip, hostnames }
}

fn reference(mut fields: Fields<'_>) -> String {
    let name = fields.required("name");
    fields.finish();
    name
}
