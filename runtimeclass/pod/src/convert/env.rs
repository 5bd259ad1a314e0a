//! The variables of a container.

use std::collections::HashMap;

use kube_manifest::{Container, DataKind, EnvValue, EnvVar, PodField};
use sandbox_core::Secret;

use super::expand::expand;
use super::input::{ConvertError, Source};

/// Variables in their order, the last value of each name winning.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Environment {
    /// A variable's value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The variables in the order in which they were first set.
    pub(crate) fn into_pairs(mut self) -> Vec<(String, String)> {
        let values = &mut self.values;
        self.order.into_iter().filter_map(|name| values.remove_entry(&name)).collect()
    }

    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }
}

/// The container's variables: those of `envFrom`, then those of `env`, in which earlier ones can be named.
pub(crate) fn environment(
    source: Source<'_>,
    container: &Container,
    pod_ips: &[String],
) -> Result<Environment, ConvertError> {
    let mut environment = Environment::default();
    for from in &container.env_from {
        for (key, value) in all_keys(source, &from.source.kind, &from.source.name) {
            let name = format!("{}{key}", from.prefix);
            let text = text(&value, &from.source.path, &key, &name)?;
            environment.set(name, text);
        }
    }
    for var in &container.env {
        if let Some(value) = value(source, var, pod_ips, &environment)? {
            environment.set(var.name.clone(), value);
        }
    }
    Ok(environment)
}

fn all_keys(source: Source<'_>, kind: &DataKind, name: &str) -> Vec<(String, Secret)> {
    let namespace = &source.pod.meta.namespace;
    match kind {
        DataKind::ConfigMap => {
            let map = source.manifest.config_map(namespace, name);
            let entry =
                |(key, value): (&String, &String)| (key.clone(), Secret::new(value.as_str()));
            map.map(|map| map.data.iter().map(entry).collect()).unwrap_or_default()
        }
        DataKind::Secret => {
            let secret = source.manifest.secret(namespace, name);
            let entry = |(key, value): (&String, &Secret)| (key.clone(), value.clone());
            secret.map(|secret| secret.data.iter().map(entry).collect()).unwrap_or_default()
        }
    }
}

/// A variable's value; `None` if an optional reference has no target, which leaves the variable unset.
fn value(
    source: Source<'_>,
    var: &EnvVar,
    pod_ips: &[String],
    before: &Environment,
) -> Result<Option<String>, ConvertError> {
    match &var.value {
        EnvValue::Text(text) => Ok(Some(expand(text, |name| before.get(name), |_| {}))),
        EnvValue::Field(field) => Ok(Some(pod_field(source, field, pod_ips))),
        EnvValue::Key { source: data, key } => {
            let keys = all_keys(source, &data.kind, &data.name);
            let found = keys.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| text(value, &data.path, key, &var.name)).transpose()
        }
    }
}

fn text(value: &Secret, path: &str, key: &str, name: &str) -> Result<String, ConvertError> {
    value.expose_text().map(str::to_owned).ok_or_else(|| ConvertError::NotText {
        path: path.to_owned(),
        key: key.to_owned(),
        name: name.to_owned(),
    })
}

fn pod_field(source: Source<'_>, field: &PodField, pod_ips: &[String]) -> String {
    let meta = &source.pod.meta;
    let keyed = |map: &std::collections::BTreeMap<String, String>, key: &str| {
        map.get(key).cloned().unwrap_or_default()
    };
    match field {
        PodField::Name => meta.name.clone(),
        PodField::Namespace => meta.namespace.clone(),
        PodField::Uid => source.placement.uid.clone(),
        PodField::Label(key) => keyed(&meta.labels, key),
        PodField::Annotation(key) => keyed(&meta.annotations, key),
        PodField::NodeName => {
            source.pod.node_name.clone().unwrap_or_else(|| source.node.name.clone())
        }
        PodField::ServiceAccount => {
            source.pod.service_account.clone().unwrap_or_else(|| "default".to_owned())
        }
        PodField::PodIp => pod_ips.first().cloned().unwrap_or_default(),
        PodField::PodIps => pod_ips.join(","),
    }
}
