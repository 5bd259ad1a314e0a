//! Tables of YAML to CRI.

use std::collections::HashMap;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, PodSandboxConfig,
};

use kube_manifest::{Findings, Manifest, SubPath, read_text};
use sandbox_host::cgroup::Limits;

use super::*;
use crate::node::NodeFacts;

const DATA: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {B: from conf, C: c}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
data: {PW: aHVudGVyMg==, BIN: gIE=}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: sandboxed}
handler: gvisor
overhead: {podFixed: {cpu: 250m, memory: 64Mi}}
---
";

fn read(spec: &str) -> Manifest {
    let text = format!(
        "{DATA}apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: default, labels: {{app: x}}, annotations: {{note: n}}}}\n\
         spec:\n  restartPolicy: Never\n  {spec}\n"
    );
    let findings = Findings::default();
    let mut manifest = Manifest::default();
    read_text("f", &text, &findings, &mut manifest).unwrap();
    assert_eq!(findings.take_faults(), []);
    manifest
}

fn node() -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        memory: 1 << 30,
        resolv_conf: "# x\nnameserver 10.0.0.1\nsearch a b\noptions ndots:1 edns0\n".into(),
        seccomp_root: "/seccomp".into(),
    }
}

fn placement() -> Placement {
    Placement {
        uid: "u-1".into(),
        directory: "/state/default_web".into(),
        cgroup_parent: "/p/u".into(),
    }
}

fn sandbox(spec: &str) -> PodSandboxConfig {
    let manifest = read(spec);
    let node = node();
    let placement = placement();
    let pod = &manifest.pods[0];
    sandbox_config(Source { manifest: &manifest, pod, node: &node, placement: &placement })
}

fn container_in(
    spec: &str,
    container: &str,
    image: ImageFacts,
) -> Result<ContainerConfig, ConvertError> {
    let manifest = read(&format!("{spec}\n  containers: [{{name: c, image: busybox{container}}}]"));
    let node = node();
    let placement = placement();
    let pod = &manifest.pods[0];
    let source = Source { manifest: &manifest, pod, node: &node, placement: &placement };
    let pod_ips = ["10.1.0.2".to_owned(), "fd00::2".to_owned()];
    container_config(source, &pod.containers[0], &ContainerFacts { image, pod_ips: &pod_ips })
}

fn container(container: &str) -> ContainerConfig {
    container_in("", container, ImageFacts::default()).unwrap()
}

fn security(spec: &str, container: &str) -> LinuxContainerSecurityContext {
    let config = container_in(spec, container, ImageFacts::default()).unwrap();
    config.linux.unwrap().security_context.unwrap()
}

const ONE: &str = "containers: [{name: c, image: i}]";

#[test]
fn a_sandbox_carries_the_pods_identity() {
    let config = sandbox(ONE);
    let meta = config.metadata.unwrap();
    assert_eq!(
        (meta.name.as_str(), meta.namespace.as_str(), meta.uid.as_str()),
        ("web", "default", "u-1")
    );
    assert_eq!(config.hostname, "web");
    assert_eq!(config.log_directory, "/state/default_web/logs");
    let pairs = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let labels = pairs(&[
        ("app", "x"),
        ("io.bulkhead.play", "true"),
        ("io.kubernetes.pod.name", "web"),
        ("io.kubernetes.pod.namespace", "default"),
        ("io.kubernetes.pod.uid", "u-1"),
    ]);
    assert_eq!(config.labels, labels);
    let annotations = pairs(&[
        ("note", "n"),
        ("io.bulkhead.play/directory", "/state/default_web"),
        ("io.bulkhead.play/grace-seconds", "30"),
    ]);
    assert_eq!(config.annotations, annotations);
    let linux = config.linux.unwrap();
    assert_eq!(linux.cgroup_parent, "/p/u");
    let context = linux.security_context.unwrap();
    assert_eq!(context.seccomp.unwrap().profile_type, i32::from(ProfileType::RuntimeDefault));
    assert!(!context.privileged);
}

#[test]
fn handlers() {
    for (spec, wanted) in
        [("", ""), ("runtimeClassName: sandboxed", "gvisor"), ("runtimeClassName: other", "other")]
    {
        let manifest = read(&format!("{spec}\n  {ONE}"));
        assert_eq!(manifest.handler(&manifest.pods[0]), wanted);
    }
}

#[test]
fn namespaces() {
    use NamespaceMode::{Container, Node, Pod};
    for (spec, network, pid, ipc) in [
        ("", Pod, Container, Pod),
        ("hostNetwork: true", Node, Container, Pod),
        ("hostPID: true", Pod, Node, Pod),
        ("hostIPC: true", Pod, Container, Node),
        ("shareProcessNamespace: true", Pod, Pod, Pod),
    ] {
        let config = sandbox(&format!("{spec}\n  {ONE}"));
        let of_sandbox = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        let of_container = security(spec, "").namespace_options.unwrap();
        for options in [of_sandbox, of_container] {
            let found = (options.network, options.pid, options.ipc);
            assert_eq!(found, (network.into(), pid.into(), ipc.into()), "{spec}");
        }
    }
    assert_eq!(sandbox(&format!("hostNetwork: true\n  {ONE}")).hostname, "");
}

#[test]
fn the_sandbox_counts_its_containers_together() {
    let config = sandbox(
        "runtimeClassName: sandboxed
  initContainers:
  - {name: i, image: i, resources: {limits: {cpu: 3, memory: 10Mi}}}
  containers:
  - {name: a, image: i, resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 500m}}}
  - {name: b, image: i, resources: {limits: {cpu: 500m, memory: 32Mi}}}",
    );
    let linux = config.linux.unwrap();
    let sum = linux.resources.unwrap();
    assert_eq!((sum.cpu_shares, sum.cpu_quota, sum.cpu_period), (3072, 300_000, 100_000));
    assert_eq!(sum.memory_limit_in_bytes, 96 << 20);
    let overhead = linux.overhead.unwrap();
    assert_eq!((overhead.cpu_shares, overhead.cpu_quota), (256, 25_000));
    assert_eq!(overhead.memory_limit_in_bytes, 64 << 20);
}

#[test]
fn the_pods_cgroup_is_limited_only_if_every_container_is() {
    let limits = |spec: &str| {
        let manifest = read(spec);
        pod_limits(&manifest, &manifest.pods[0])
    };
    let all = limits(
        "runtimeClassName: sandboxed
  containers: [{name: a, image: i, resources: {limits: {cpu: 1, memory: 64Mi}}}]",
    );
    let wanted = Limits {
        cpu_shares: Some(1280),
        cpu_quota: Some(125_000),
        cpu_period: Some(100_000),
        memory: Some(128 << 20),
        ..Limits::default()
    };
    assert_eq!(all, wanted);
    let some = limits(
        "containers: [{name: a, image: i, resources: {limits: {cpu: 1, memory: 64Mi}}}, {name: b, image: i}]",
    );
    assert_eq!(some, Limits::default());
}

#[test]
fn resources_of_containers() {
    for (resources, shares, quota, memory, oom) in [
        ("{}", 2, 0, 0, 1000),
        ("{limits: {cpu: 500m, memory: 64Mi}}", 512, 50_000, 64 << 20, -997),
        ("{limits: {cpu: 500m}, requests: {cpu: 100m}}", 102, 50_000, 0, 999),
        ("{requests: {memory: 256Mi}}", 2, 0, 0, 750),
        ("{requests: {memory: 4Gi}}", 2, 0, 0, 3),
        ("{limits: {cpu: 1m}}", 2, 1000, 0, 999),
        ("{requests: {cpu: 1000}}", 262_144, 0, 0, 999),
    ] {
        let linux =
            container(&format!(", resources: {resources}")).linux.unwrap().resources.unwrap();
        let found =
            (linux.cpu_shares, linux.cpu_quota, linux.memory_limit_in_bytes, linux.oom_score_adj);
        assert_eq!(found, (shares, quota, memory, oom), "{resources}");
    }
}

#[test]
fn variables_and_words() {
    let config = container(
        ", command: [run, '$(A)'], args: ['$(B)-$(NONE)', '$$(A)'],
     envFrom: [{configMapRef: {name: conf}}, {prefix: S_, secretRef: {name: gone, optional: true}}],
     env: [{name: A, value: '1'}, {name: B, value: '$(A)$(C)$(LATER)'}, {name: LATER, value: x},
      {name: PW, valueFrom: {secretKeyRef: {name: sec, key: PW}}},
      {name: GONE, valueFrom: {secretKeyRef: {name: sec, key: no, optional: true}}},
      {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
      {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}},
      {name: ID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}},
      {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}},
      {name: NOTE, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['note']\"}}},
      {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}},
      {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}},
      {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}]",
    );
    let pairs: Vec<_> = config.envs.iter().map(|it| (it.key.as_str(), it.value.as_str())).collect();
    let wanted = [
        ("B", "1c$(LATER)"),
        ("C", "c"),
        ("A", "1"),
        ("LATER", "x"),
        ("PW", "hunter2"),
        ("NAME", "web"),
        ("NS", "default"),
        ("ID", "u-1"),
        ("APP", "x"),
        ("NOTE", "n"),
        ("NODE", "node1"),
        ("IP", "10.1.0.2"),
        ("IPS", "10.1.0.2,fd00::2"),
    ];
    assert_eq!(pairs, wanted);
    assert_eq!(config.command, ["run", "1"]);
    assert_eq!(config.args, ["1c$(LATER)-$(NONE)", "$(A)"]);
}

#[test]
fn a_secret_that_is_no_text_cannot_be_a_variable() {
    let env = ", env: [{name: X, valueFrom: {secretKeyRef: {name: sec, key: BIN}}}]";
    let error = container_in("", env, ImageFacts::default()).unwrap_err().to_string();
    let wanted = "spec.containers[0].env[0].valueFrom.secretKeyRef: the value of key \"BIN\" is not UTF-8, so it cannot be the variable \"X\"; mount it as a file";
    assert_eq!(error, wanted);
}

#[test]
fn users() {
    let image =
        |uid: Option<i64>, name: &str| ImageFacts { id: "id".into(), uid, username: name.into() };
    for (spec, own, image, wanted) in [
        ("", "", image(None, ""), (Some(0), "", None)),
        ("", "", image(Some(7), ""), (Some(7), "", None)),
        ("", "", image(None, "nobody"), (None, "nobody", None)),
        ("", "{runAsUser: 5}", image(None, "nobody"), (Some(5), "", None)),
        ("{runAsUser: 5, runAsGroup: 6}", "", image(Some(7), ""), (Some(5), "", Some(6))),
        (
            "{runAsUser: 5, runAsNonRoot: true}",
            "{runAsUser: 8}",
            image(Some(7), ""),
            (Some(8), "", None),
        ),
        ("{runAsNonRoot: true}", "{runAsNonRoot: false}", image(Some(0), ""), (Some(0), "", None)),
        ("{runAsNonRoot: true}", "", image(Some(9), ""), (Some(9), "", None)),
    ] {
        let spec = if spec.is_empty() { String::new() } else { format!("securityContext: {spec}") };
        let own = if own.is_empty() { String::new() } else { format!(", securityContext: {own}") };
        let config = container_in(&spec, &own, image).unwrap();
        let context = config.linux.unwrap().security_context.unwrap();
        let number = |value: Option<k8s_cri::v1::Int64Value>| value.map(|it| it.value);
        let found = (
            number(context.run_as_user),
            context.run_as_username.as_str(),
            number(context.run_as_group),
        );
        assert_eq!(found, wanted, "{spec} {own}");
    }
}

#[test]
fn root_is_refused_where_it_must_not_be() {
    let image = |uid, name: &str| ImageFacts { id: "id".into(), uid, username: name.into() };
    for (own, image, why) in [
        ("runAsUser: 0", image(Some(7), ""), "runAsUser is 0"),
        ("runAsGroup: 1", image(Some(0), ""), "image \"busybox\" runs as root"),
        ("runAsGroup: 1", image(None, ""), "image \"busybox\" runs as root"),
        (
            "runAsGroup: 1",
            image(None, "nobody"),
            "image \"busybox\" runs as \"nobody\", whose uid is not known",
        ),
    ] {
        let own = format!(", securityContext: {{runAsNonRoot: true, {own}}}");
        let error = container_in("", &own, image).unwrap_err().to_string();
        let wanted = format!(
            "spec.containers[0].securityContext: runAsNonRoot is true, but {why}; set runAsUser to another user than 0"
        );
        assert_eq!(error, wanted);
    }
}

#[test]
fn privileges() {
    let context = security("securityContext: {fsGroup: 3, supplementalGroups: [1, 2]}", "");
    assert_eq!(context.supplemental_groups, [1, 2, 3]);
    assert!(!context.no_new_privs && !context.privileged && !context.readonly_rootfs);
    assert!(context.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert!(context.readonly_paths.contains(&"/proc/sys".to_owned()));
    assert_eq!(context.seccomp.unwrap().profile_type, i32::from(ProfileType::Unconfined));
    let context = security(
        "",
        ", securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, procMount: Unmasked, \
         capabilities: {add: [CAP_NET_ADMIN, sys_time], drop: [ALL]}, \
         seccompProfile: {type: Localhost, localhostProfile: a/b.json}}",
    );
    assert!(context.no_new_privs && context.readonly_rootfs);
    assert!(context.masked_paths.is_empty() && context.readonly_paths.is_empty());
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
    assert_eq!(capabilities.drop_capabilities, ["ALL"]);
    assert_eq!(context.seccomp.unwrap().localhost_ref, "/seccomp/a/b.json");
    let privileged = "containers: [{name: a, image: i}, {name: b, image: i, securityContext: {privileged: true}}]";
    assert!(sandbox(privileged).linux.unwrap().security_context.unwrap().privileged);
}

#[test]
fn dns_is_the_nodes_or_the_pods() {
    let dns = |spec: &str| sandbox(&format!("{spec}\n  {ONE}")).dns_config;
    assert_eq!(dns(""), None);
    assert_eq!(dns("dnsPolicy: Default"), None);
    let more = dns(
        "dnsConfig: {nameservers: [10.0.0.2], searches: [c], options: [{name: ndots, value: '5'}]}",
    )
    .unwrap();
    assert_eq!(more.servers, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(more.searches, ["a", "b", "c"]);
    assert_eq!(more.options, ["edns0", "ndots:5"]);
    let only = dns("dnsPolicy: None\n  dnsConfig: {nameservers: [10.0.0.2]}").unwrap();
    assert_eq!((only.servers.len(), only.searches.len(), only.options.len()), (1, 0, 0));
}

#[test]
fn only_host_ports_are_mapped() {
    let ports = "containers: [{name: c, image: i, ports: [{containerPort: 80}, \
                 {containerPort: 53, hostPort: 5353, hostIP: 127.0.0.1, protocol: UDP}]}]";
    let mappings = sandbox(ports).port_mappings;
    assert_eq!(mappings.len(), 1);
    let mapping = &mappings[0];
    assert_eq!((mapping.container_port, mapping.host_port), (53, 5353));
    assert_eq!((mapping.protocol, mapping.host_ip.as_str()), (1, "127.0.0.1"));
    assert_eq!(sandbox(&format!("hostNetwork: true\n  {ports}")).port_mappings, []);
}

fn hosts(spec: &str) -> String {
    let manifest = read(&format!("{spec}\n  {ONE}"));
    let node = node();
    let placement = placement();
    let pod = &manifest.pods[0];
    let source = Source { manifest: &manifest, pod, node: &node, placement: &placement };
    hosts_file(source, &["10.1.0.2".to_owned()], "127.0.0.1 node1")
}

#[test]
fn hosts_files() {
    let text = hosts("hostname: shop\n  hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]");
    assert!(text.ends_with("10.1.0.2\tshop\n1.2.3.4\ta b\n"), "{text}");
    let text = hosts("hostNetwork: true");
    assert_eq!(text, "# Written by bulkhead play.\n127.0.0.1 node1\n");
}

#[test]
fn sub_path_expressions() {
    let spec = "volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: c, image: i, env: [{name: A, value: a}, {name: UP, value: ../x}], volumeMounts: [{name: v, mountPath: /v}]}";
    let manifest = read(spec);
    let node = node();
    let placement = placement();
    let pod = &manifest.pods[0];
    let source = Source { manifest: &manifest, pod, node: &node, placement: &placement };
    let expanded = |expression: &str| {
        let mut mount = pod.containers[0].mounts[0].clone();
        mount.sub_path = Some(SubPath::Expression(expression.into()));
        sub_path(source, &pod.containers[0], &mount, &[]).map_err(|error| error.to_string())
    };
    let place = "spec.containers[0].volumeMounts[0].subPathExpr";
    assert_eq!(expanded("x/$(A)"), Ok(Some("x/a".to_owned())));
    assert_eq!(
        expanded("$(B)"),
        Err(format!("{place}: \"$(B)\" names a variable that is not set"))
    );
    assert_eq!(expanded("$(UP)"), Err(format!("{place}: \"../x\" leads out of the volume")));
}
