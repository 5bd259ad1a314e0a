//! Containers.

use super::relative::escapes;
use super::{resources, security};
use crate::container::{
    Container, EnvFrom, EnvValue, EnvVar, PodField, Port, Propagation, Protocol, PullPolicy,
    SubPath, VolumeMount,
};
use crate::fields::Fields;
use crate::names;
use crate::object::{DataKind, DataSource};

const PROBES: &str = "play runs no probes";
const UNSUPPORTED: &[(&str, &str)] = &[
    ("livenessProbe", PROBES),
    ("readinessProbe", PROBES),
    ("startupProbe", PROBES),
    ("lifecycle", "play runs no lifecycle hooks"),
    ("volumeDevices", "block volumes need a cluster"),
    ("restartPolicy", "play does not restart containers, so it runs no sidecar init containers"),
    ("restartPolicyRules", "play does not restart containers"),
];

/// Reads one container of `spec.containers` or `spec.initContainers`.
pub(super) fn container(mut fields: Fields<'_>) -> Container {
    let path = fields.path().to_owned();
    let name = fields.required("name");
    match names::label(&name) {
        Err(error) if !name.is_empty() => fields.fault("name", error.to_string()),
        Ok(()) | Err(_) => {}
    }
    let message_path = fields.string("terminationMessagePath");
    let policies = [("File", ()), ("FallbackToLogsOnError", ())];
    fields.word("terminationMessagePolicy", &policies);
    fields.drop_silent(&["resizePolicy"]);
    let container = Container {
        path,
        name,
        image: fields.required("image"),
        pull: fields.word(
            "imagePullPolicy",
            &[
                ("IfNotPresent", PullPolicy::Missing),
                ("Never", PullPolicy::Never),
                ("Always", PullPolicy::Always),
            ],
        ),
        command: fields.strings("command"),
        args: fields.strings("args"),
        working_dir: fields.string("workingDir"),
        env_from: fields.objects("envFrom").into_iter().filter_map(env_from).collect(),
        env: fields.objects("env").into_iter().filter_map(env_var).collect(),
        mounts: fields.objects("volumeMounts").into_iter().map(mount).collect(),
        ports: fields.objects("ports").into_iter().filter_map(port).collect(),
        resources: resources::resources(&mut fields),
        security: security::container(&mut fields),
        termination_message_path: message_path.unwrap_or_else(|| "/dev/termination-log".to_owned()),
        stdin: fields.boolean("stdin").unwrap_or_default(),
        stdin_once: fields.boolean("stdinOnce").unwrap_or_default(),
        tty: fields.boolean("tty").unwrap_or_default(),
    };
    fields.finish_refusing(UNSUPPORTED);
    container
}

fn variable_name(fields: &Fields<'_>, name: &str) {
    let printable = name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=');
    if !printable {
        fields.fault("name", format!("{name:?} must be printable ASCII without '='"));
    }
}

fn env_var(mut fields: Fields<'_>) -> Option<EnvVar> {
    let name = fields.required("name");
    variable_name(&fields, &name);
    let text = fields.string("value");
    let from = fields.fields("valueFrom");
    if text.is_some() && from.is_some() {
        fields.fault("valueFrom", "must not be set together with value");
    }
    let value = match from {
        Some(from) => value_from(from)?,
        None => EnvValue::Text(text.unwrap_or_default()),
    };
    fields.finish();
    Some(EnvVar { name, value })
}

fn value_from(mut fields: Fields<'_>) -> Option<EnvValue> {
    let set = fields.keys();
    if set.len() != 1 {
        fields.fault_here(format!("must name exactly one source, not {}", set.len()));
    }
    let config_map = key_of(&mut fields, "configMapKeyRef", DataKind::ConfigMap);
    let secret = key_of(&mut fields, "secretKeyRef", DataKind::Secret);
    let field = fields.fields("fieldRef").and_then(field_ref);
    fields.finish_refusing(&[
        ("resourceFieldRef", "play does not expose resources as variables"),
        ("fileKeyRef", "play does not read variables from files"),
    ]);
    config_map.or(secret).or(field)
}

fn key_of(object: &mut Fields<'_>, key: &str, kind: DataKind) -> Option<EnvValue> {
    let mut fields = object.fields(key)?;
    let key = fields.required("key");
    let source = source(&mut fields, kind);
    fields.finish();
    Some(EnvValue::Key { source, key })
}

fn source(fields: &mut Fields<'_>, kind: DataKind) -> DataSource {
    DataSource {
        path: fields.path().to_owned(),
        kind,
        name: fields.required("name"),
        optional: fields.boolean("optional").unwrap_or_default(),
    }
}

fn env_from(mut fields: Fields<'_>) -> Option<EnvFrom> {
    let prefix = fields.string("prefix").unwrap_or_default();
    let mut sources = Vec::new();
    for (key, kind) in [("configMapRef", DataKind::ConfigMap), ("secretRef", DataKind::Secret)] {
        if let Some(mut reference) = fields.fields(key) {
            sources.push(source(&mut reference, kind));
            reference.finish();
        }
    }
    if sources.len() != 1 {
        fields.fault_here("exactly one of configMapRef and secretRef must be set");
    }
    fields.finish();
    sources.pop().map(|source| EnvFrom { prefix, source })
}

fn field_ref(mut fields: Fields<'_>) -> Option<EnvValue> {
    fields.word("apiVersion", &[("v1", ())]);
    let path = fields.required("fieldPath");
    let field = pod_field(&path);
    if field.is_none() && !path.is_empty() {
        let text = format!(
            "{path:?} is not supported; play supports metadata.name, metadata.namespace, metadata.uid, \
             metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, spec.serviceAccountName, \
             status.podIP and status.podIPs"
        );
        fields.fault("fieldPath", text);
    }
    fields.finish();
    field.map(EnvValue::Field)
}

fn pod_field(path: &str) -> Option<PodField> {
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']").map(str::to_owned);
    Some(match path {
        "metadata.name" => PodField::Name,
        "metadata.namespace" => PodField::Namespace,
        "metadata.uid" => PodField::Uid,
        "spec.nodeName" => PodField::NodeName,
        "spec.serviceAccountName" => PodField::ServiceAccount,
        "status.podIP" => PodField::PodIp,
        "status.podIPs" => PodField::PodIps,
        _ => {
            let label = keyed("metadata.labels['").map(PodField::Label);
            return label.or_else(|| keyed("metadata.annotations['").map(PodField::Annotation));
        }
    })
}

fn mount(mut fields: Fields<'_>) -> VolumeMount {
    let path = fields.path().to_owned();
    let volume = fields.required("name");
    let mut target = fields.required("mountPath");
    if target.contains(':') {
        fields.fault("mountPath", format!("{target:?} must not contain ':'"));
    }
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    let plain = fields.string("subPath");
    if let Some(text) = plain.as_deref().and_then(escapes) {
        fields.fault("subPath", text);
    }
    let expression = fields.string("subPathExpr");
    if plain.is_some() && expression.is_some() {
        fields.fault("subPathExpr", "must not be set together with subPath");
    }
    let propagations = [
        ("None", Propagation::Private),
        ("HostToContainer", Propagation::HostToContainer),
        ("Bidirectional", Propagation::Bidirectional),
    ];
    let mount = VolumeMount {
        path,
        volume,
        target,
        read_only: fields.boolean("readOnly").unwrap_or_default(),
        sub_path: plain.map(SubPath::Plain).or(expression.map(SubPath::Expression)),
        propagation: fields.word("mountPropagation", &propagations).unwrap_or_default(),
    };
    fields.word("recursiveReadOnly", &[("Disabled", ()), ("IfPossible", ())]);
    fields.finish();
    mount
}

fn port(mut fields: Fields<'_>) -> Option<Port> {
    let range = 1..=65535;
    let number = |port: i64| i32::try_from(port).ok();
    let container = fields.integer_in("containerPort", range.clone());
    if container.is_none() {
        fields.fault("containerPort", "is required");
    }
    let host = fields.integer_in("hostPort", range).and_then(number);
    let host_ip = fields.string("hostIP").unwrap_or_default();
    if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
        fields.fault("hostIP", format!("{host_ip:?} is not an IP address"));
    }
    let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
    let protocol = fields.word("protocol", &protocols).unwrap_or_default();
    fields.drop_silent(&["name"]);
    fields.finish();
    Some(Port { container: container.and_then(number)?, host, host_ip, protocol })
}
