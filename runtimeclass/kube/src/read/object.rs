//! Secret, ConfigMap and RuntimeClass.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{meta, resources};
use crate::fields::Fields;
use crate::names;
use crate::node::Node;
use crate::object::{ConfigMap, RuntimeClass, Secret};

/// Reads a Secret; `stringData` takes precedence over `data`, as in Kubernetes.
pub(crate) fn secret(document: &str, mut fields: Fields<'_>) -> Secret {
    let meta = meta::metadata(&mut fields, names::subdomain);
    let kind = fields.string("type").unwrap_or_else(|| "Opaque".to_owned());
    let mut data =
        entries(&mut fields, "data", |node| decoded(node).map(sandbox_core::Secret::new));
    data.extend(entries(&mut fields, "stringData", |node| {
        node.string().map(sandbox_core::Secret::new)
    }));
    fields.drop_silent(&["immutable"]);
    fields.finish();
    Secret { document: document.to_owned(), meta, kind, data }
}

/// Reads a ConfigMap.
pub(crate) fn config_map(document: &str, mut fields: Fields<'_>) -> ConfigMap {
    let meta = meta::metadata(&mut fields, names::subdomain);
    let data = entries(&mut fields, "data", |node| node.string());
    let binary = entries(&mut fields, "binaryData", decoded);
    for key in binary.keys().filter(|key| data.contains_key(*key)) {
        fields.fault(&format!("binaryData.{key}"), "is also set in data; remove one of them");
    }
    fields.drop_silent(&["immutable"]);
    fields.finish();
    ConfigMap { document: document.to_owned(), meta, data, binary }
}

/// Reads a RuntimeClass.
pub(crate) fn runtime_class(document: &str, mut fields: Fields<'_>) -> RuntimeClass {
    let meta = meta::metadata(&mut fields, names::subdomain);
    let handler = fields.required("handler");
    match names::label(&handler) {
        Err(error) if !handler.is_empty() => fields.fault("handler", error.to_string()),
        Ok(()) | Err(_) => {}
    }
    let overhead = fields.fields("overhead").map(|mut overhead| {
        let amounts = resources::amounts(&mut overhead, "podFixed");
        overhead.finish();
        amounts
    });
    fields.drop_cluster_only(&["scheduling"]);
    fields.finish();
    RuntimeClass {
        document: document.to_owned(),
        meta,
        handler,
        overhead: overhead.unwrap_or_default(),
    }
}

fn entries<T>(
    object: &mut Fields<'_>,
    field: &str,
    read: impl Fn(&Node<'_>) -> Option<T>,
) -> BTreeMap<String, T> {
    let Some(mut fields) = object.fields(field) else { return BTreeMap::new() };
    let mut entries = BTreeMap::new();
    for key in fields.keys() {
        if let Err(error) = names::key(&key) {
            fields.fault(&key, error.to_string());
        }
        if let Some(value) = fields.take(&key).as_ref().and_then(&read) {
            entries.insert(key, value);
        }
    }
    entries
}

fn decoded(node: &Node<'_>) -> Option<Vec<u8>> {
    let mut text = node.string()?;
    text.retain(|c| !c.is_ascii_whitespace());
    let bytes = STANDARD.decode(text);
    if bytes.is_err() {
        node.fault("must be base64; put plain text under stringData (Secret) or data (ConfigMap)");
    }
    bytes.ok()
}
