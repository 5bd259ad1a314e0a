//! Bad and good documents, with the exact messages.

use crate::check;
use crate::{
    Fault, Findings, HostPathType, Manifest, Pod, SubPath, VolumeSource, read_files, read_text,
};

/// All faults and notes about a text.
fn findings(text: &str) -> (Vec<String>, Vec<String>) {
    let findings = Findings::default();
    let mut manifest = Manifest::default();
    read_text("f", text, &findings, &mut manifest).unwrap();
    check::references(&manifest, &findings);
    let lines = |faults: Vec<Fault>| faults.iter().map(ToString::to_string).collect();
    (lines(findings.take_faults()), lines(findings.take_notes()))
}

fn pod_text(spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  restartPolicy: Never\n  {spec}\n  \
         containers:\n  - {{name: c, image: busybox{container}}}\n"
    )
}

fn pod(text: &str) -> Pod {
    let findings = Findings::default();
    let mut manifest = Manifest::default();
    read_text("f", text, &findings, &mut manifest).unwrap();
    check::references(&manifest, &findings);
    assert_eq!(findings.take_faults(), []);
    manifest.pods.remove(0)
}

const WEB: &str = "f: document 1 (Pod default/web)";

const POD_FAULTS: &[(&str, &str)] = &[
    (
        "hostUsers: false",
        "spec.hostUsers: play does not set up user namespaces; remove hostUsers: false",
    ),
    (
        "nodeSelektor: {a: b}",
        "spec.nodeSelektor: unknown field; check its spelling and indentation, or pass --ignore nodeSelektor (value: {\"a\":\"b\"})",
    ),
    (
        "restartPolicy2: x\n  hostname: A",
        "spec.hostname: \"A\" is not a DNS label: at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    ),
    ("dnsPolicy: None", "spec.dnsConfig: is required with dnsPolicy: None"),
    (
        "dnsPolicy: Nine",
        "spec.dnsPolicy: \"Nine\" is not supported; it must be one of ClusterFirst, ClusterFirstWithHostNet, Default, None",
    ),
    ("hostNetwork: 1", "spec.hostNetwork: must be true or false, not 1"),
    (
        "terminationGracePeriodSeconds: -1",
        "spec.terminationGracePeriodSeconds: -1 must be between 0 and 86400",
    ),
    (
        "volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]",
        "spec.volumes[0].persistentVolumeClaim: this kind of volume needs a cluster; use emptyDir or hostPath; remove it or pass --ignore persistentVolumeClaim (value: {\"claimName\":\"x\"})",
    ),
    (
        "volumes: [{name: v}]",
        "spec.volumes[0]: volume \"v\" has no source; use emptyDir: {} for an empty one",
    ),
    (
        "volumes: [{name: v, emptyDir: {}, hostPath: {path: /a}}]",
        "spec.volumes[0]: volume \"v\" must have one source, not emptyDir, hostPath",
    ),
    (
        "volumes: [{name: v, hostPath: {path: a/b}}]",
        "spec.volumes[0].hostPath.path: \"a/b\" must be absolute and without \"..\"",
    ),
    (
        "volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]",
        "spec.volumes[1].name: \"v\" is used by two volumes of the Pod",
    ),
    (
        "volumes: [{name: v, configMap: {name: x}}]",
        "spec.volumes[0].configMap: ConfigMap \"x\" is not in the files (namespace default); add its document, or set optional: true",
    ),
    (
        "volumes: [{name: v, secret: {secretName: x, defaultMode: 0888, optional: true}}]",
        "spec.volumes[0].secret.defaultMode: must be a file mode between 0 and 0777, not \"0888\"",
    ),
    (
        "securityContext: {fsGroup: x}",
        "spec.securityContext.fsGroup: must be a whole number, not \"x\"",
    ),
    ("hostAliases: [{ip: 1.2.3}]", "spec.hostAliases[0].ip: \"1.2.3\" is not an IP address"),
    (
        "containers2: {}\n  overhead: {cpu: 1x}",
        "spec.overhead.cpu: \"1x\" is not a quantity: the suffix \"x\" is none of n u m k M G T P E Ki Mi Gi Ti Pi Ei or an exponent like e3",
    ),
];

#[test]
fn faults_of_pods() {
    for (spec, wanted) in POD_FAULTS {
        let (faults, _) = findings(&pod_text(spec, ""));
        let wanted = format!("{WEB}: {wanted}");
        assert!(faults.contains(&wanted), "{spec}:\n{faults:#?}\nlacks\n{wanted}");
    }
}

const CONTAINER_FAULTS: &[(&str, &str)] = &[
    (
        ", livenessProbe: {exec: {command: [x]}}",
        "livenessProbe: play runs no probes; remove it or pass --ignore livenessProbe (value: {\"exec\":{\"command\":[\"x\"]}})",
    ),
    (
        ", restartPolicy: Always",
        "restartPolicy: play does not restart containers, so it runs no sidecar init containers; remove it or pass --ignore restartPolicy (value: \"Always\")",
    ),
    (", command: sh", "command: must be a list, not \"sh\""),
    (", args: [1]", "args[0]: must be a string (put it in quotes), not 1"),
    (
        ", imagePullPolicy: Sometimes",
        "imagePullPolicy: \"Sometimes\" is not supported; it must be one of IfNotPresent, Never, Always",
    ),
    (", env: [{name: A, value: 1}]", "env[0].value: must be a string (put it in quotes), not 1"),
    (", env: [{name: A=B}]", "env[0].name: \"A=B\" must be printable ASCII without '='"),
    (", env: [{name: A, valueFrom: {}}]", "env[0].valueFrom: must name exactly one source, not 0"),
    (
        ", env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]",
        "env[0].valueFrom.resourceFieldRef: play does not expose resources as variables; remove it or pass --ignore resourceFieldRef (value: {\"resource\":\"limits.cpu\"})",
    ),
    (
        ", env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]",
        "env[0].valueFrom.fieldRef.fieldPath: \"status.hostIP\" is not supported; play supports metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, spec.serviceAccountName, status.podIP and status.podIPs",
    ),
    (
        ", env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
        "env[0].valueFrom.secretKeyRef: Secret \"s\" is not in the files (namespace default); add its document, or set optional: true",
    ),
    (
        ", envFrom: [{prefix: x}]",
        "envFrom[0]: exactly one of configMapRef and secretRef must be set",
    ),
    (
        ", volumeMounts: [{name: v, mountPath: /a}]",
        "volumeMounts[0].name: no volume \"v\" in spec.volumes",
    ),
    (
        ", volumeMounts: [{name: v, mountPath: /a, subPath: a/../../b}]",
        "volumeMounts[0].subPath: \"a/../../b\" must be relative and without \"..\"",
    ),
    (
        ", ports: [{containerPort: 70000}]",
        "ports[0].containerPort: 70000 must be between 1 and 65535",
    ),
    (
        ", resources: {limits: {nvidia.com/gpu: 1}}",
        "resources.limits.nvidia.com/gpu: device plugins need a kubelet; play supports cpu, memory and ephemeral-storage; remove it or pass --ignore nvidia.com/gpu (value: 1)",
    ),
    (
        ", resources: {limits: {cpu: 100m}, requests: {cpu: 1}}",
        "resources.requests.cpu: 1 must not be more than the limit 100m",
    ),
    (
        ", securityContext: {seccompProfile: {type: Localhost}}",
        "securityContext.seccompProfile.localhostProfile: is required with type Localhost",
    ),
    (
        ", securityContext: {privileged: true, allowPrivilegeEscalation: false}",
        "securityContext.allowPrivilegeEscalation: must not be false when the container is privileged or adds SYS_ADMIN",
    ),
];

#[test]
fn faults_of_containers() {
    for (container, wanted) in CONTAINER_FAULTS {
        let (faults, _) = findings(&pod_text("", container));
        let wanted = format!("{WEB}: spec.containers[0].{wanted}");
        assert!(faults.contains(&wanted), "{container}:\n{faults:#?}\nlacks\n{wanted}");
    }
}

const DOCUMENT_FAULTS: &[(&str, &str)] = &[
    ("", "the files: there is no Pod in them, so there is nothing to run"),
    (
        "a: b",
        "f: document 1: apiVersion \"\", kind \"\" is not supported: every document needs apiVersion and kind",
    ),
    (
        "[1]",
        "f: document 1: apiVersion \"\", kind \"\" is not supported: every document needs apiVersion and kind",
    ),
    (
        "apiVersion: apps/v1\nkind: Deployment",
        "f: document 1: apiVersion \"apps/v1\", kind \"Deployment\" is not supported: play runs Pods: put the Pod template of this Deployment into a document of kind Pod",
    ),
    (
        "apiVersion: v1\nkind: Service",
        "f: document 1: apiVersion \"v1\", kind \"Service\" is not supported: play supports v1 Pod, Secret, ConfigMap, List and node.k8s.io/v1 RuntimeClass; remove it",
    ),
    ("apiVersion: v1\nkind: List", "f: document 1: items: a List must have a list of items"),
    (
        "apiVersion: v1\nkind: Pod",
        "f: document 1 (Pod default/without a name): metadata.name: is required",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}",
        "f: document 1 (Pod default/../x): metadata.name: \"../x\" is not a DNS label: at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}",
        "f: document 1 (Pod default/x): spec.containers: at least one container is required",
    ),
    (
        "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, data: {..a: b}}]",
        "f: document 1 item 1 (ConfigMap default/x): data...a: \"..a\" is not a valid key: at most 253 of A-Z, a-z, 0-9, '-', '_' and '.', neither \".\" nor starting with \"..\"",
    ),
    (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {a: '!'}",
        "f: document 1 (Secret default/x): data.a: must be base64; put plain text under stringData (Secret) or data (ConfigMap)",
    ),
    (
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: x}\nhandler: A",
        "f: document 1 (RuntimeClass x): handler: \"A\" is not a DNS label: at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    ),
];

#[test]
fn faults_of_documents() {
    for (text, wanted) in DOCUMENT_FAULTS {
        let (faults, _) = findings(text);
        assert!(
            faults.iter().any(|fault| fault == wanted),
            "{text}:\n{faults:#?}\nlacks\n{wanted}"
        );
    }
}

#[test]
fn all_faults_come_at_once() {
    let text = format!(
        "{}---\n{}",
        pod_text("hostUsers: false", ", livenessProbe: {a: b}, command: sh"),
        pod_text("", "")
    );
    let (faults, _) = findings(&text);
    assert_eq!(faults.len(), 4, "{faults:#?}");
    assert!(faults[3].starts_with("f: document 2 (Pod default/web): metadata.name: is used twice"));
}

#[test]
fn a_secrets_values_are_never_shown() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\nstringData: {a: [hunter2]}\ndatas: {b: hunter2}";
    let (faults, _) = findings(text);
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(faults.iter().all(|fault| !fault.contains("hunter2")), "{faults:#?}");
}

#[test]
fn a_key_that_is_set_twice_is_refused() {
    let text = "apiVersion: v1\nkind: Pod\nkind: Pod\n";
    let findings = Findings::default();
    let mut manifest = Manifest::default();
    let error = read_text("f", text, &findings, &mut manifest).unwrap_err();
    assert_eq!(error.to_string(), "f: document 1 is not YAML");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("duplicate entry"), "{cause}");
}

#[test]
fn notes() {
    for (spec, container, wanted) in [
        (
            "nodeSelector: {a: b}\n  tolerations: [{key: x}]\n  affinity: {}",
            "",
            "not used without a cluster: spec.nodeSelector, spec.tolerations",
        ),
        (
            "volumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]",
            "",
            "spec.volumes[0].emptyDir.sizeLimit: is enforced by play only with medium: Memory",
        ),
        (
            "",
            ", resources: {limits: {ephemeral-storage: 1Gi}}",
            "spec.containers[0].resources.limits.ephemeral-storage: is not enforced by play",
        ),
        (
            "imagePullSecrets: [{name: x}]",
            "",
            "spec.imagePullSecrets: Secret \"x\" is not in the files; its registry gets no credentials",
        ),
    ] {
        let (faults, notes) = findings(&pod_text(spec, container));
        assert_eq!(faults, [""; 0]);
        assert_eq!(notes, [format!("{WEB}: {wanted}")]);
    }
    let (_, notes) = findings(&pod_text("", "").replace("Never", "Always"));
    assert_eq!(
        notes,
        [format!("{WEB}: spec.restartPolicy: play runs containers once and does not restart them")]
    );
    let (_, notes) = findings(&pod_text("", "").replace("restartPolicy: Never", ""));
    assert_eq!(
        notes,
        [format!(
            "{WEB}: spec.restartPolicy: defaults to Always, but play runs containers once; set it to Never to silence this note"
        )]
    );
}

#[test]
fn ignored_fields_become_notes() {
    let findings = Findings::ignoring(vec!["livenessProbe".to_owned(), "typo".to_owned()]);
    let mut manifest = Manifest::default();
    let text = pod_text("typo: 1", ", livenessProbe: {a: b}, readinessProbe: {a: b}");
    read_text("f", &text, &findings, &mut manifest).unwrap();
    let faults = findings.take_faults();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert_eq!(faults[0].path, "spec.containers[0].readinessProbe");
    assert_eq!(findings.take_notes().len(), 2);
}

#[test]
fn an_object_exported_from_a_cluster_is_accepted() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  uid: u\n  resourceVersion: '1'\n  \
        creationTimestamp: 2024-01-01T00:00:00Z\n  managedFields: [{a: b}]\nspec:\n  restartPolicy: Never\n  \
        schedulerName: default-scheduler\n  serviceAccount: default\n  serviceAccountName: default\n  \
        priority: 0\n  preemptionPolicy: PreemptLowerPriority\n  enableServiceLinks: true\n  dnsPolicy: ClusterFirst\n  \
        nodeName: n\n  securityContext: {}\n  terminationGracePeriodSeconds: 30\n  containers:\n  - name: c\n    \
        image: i\n    resources: {}\n    terminationMessagePolicy: File\nstatus: {phase: Running}\n";
    let (faults, notes) = findings(text);
    assert_eq!(faults, [""; 0]);
    assert_eq!(notes.len(), 3, "{notes:#?}");
}

#[test]
fn yaml_of_both_versions() {
    let spec = "hostNetwork: yes\n  volumes:\n  - {name: a, secret: {secretName: s, optional: true, defaultMode: 0400}}\n  \
        - {name: b, secret: {secretName: s, optional: true, defaultMode: 256}}\n  - {name: h, hostPath: {path: /x, type: ''}}\n  \
        - {name: m, emptyDir: {medium: Memory, sizeLimit: 1Ki}}";
    let mount = ", volumeMounts: [{name: h, mountPath: x/y, subPathExpr: $(A)}]";
    let pod = pod(&pod_text(spec, mount));
    assert!(pod.host_network);
    let mode = |at: usize| {
        let VolumeSource::Data { mode, .. } = &pod.volumes[at].source else { panic!("no data") };
        *mode
    };
    assert_eq!((mode(0), mode(1)), (0o400, 0o400));
    let host = VolumeSource::HostPath { path: "/x".into(), kind: HostPathType::Unchecked };
    assert_eq!(pod.volumes[2].source, host);
    assert_eq!(pod.volumes[3].source, VolumeSource::Memory { size: Some(1024) });
    let mount = &pod.containers[0].mounts[0];
    assert_eq!(mount.target, "/x/y");
    assert_eq!(mount.sub_path, Some(SubPath::Expression("$(A)".into())));
}

#[test]
fn anchors_and_merges_are_followed() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: &m {name: web}\nspec:\n  restartPolicy: Never\n  containers:\n  \
        - &c {name: a, image: i}\n  - {<<: *c, name: b}\n";
    let pod = pod(text);
    let names: Vec<_> =
        pod.containers.iter().map(|it| (it.name.as_str(), it.image.as_str())).collect();
    assert_eq!(names, [("a", "i"), ("b", "i")]);
}

#[test]
fn the_examples_are_read_without_a_fault_or_note() {
    let examples =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/examples")).unwrap();
    let mut count = 0;
    for example in examples {
        let path = example.unwrap().path();
        let findings = Findings::default();
        read_files(&[path], &findings).unwrap();
        assert_eq!(findings.take_notes(), []);
        count += 1;
    }
    assert!(count >= 4);
}
