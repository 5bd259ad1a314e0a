//! `metadata`.

use serde_json::Value;

use crate::fields::Fields;
use crate::names;
use crate::object::Metadata;

/// An object's name for messages: `default/web`, or `gvisor` where there is no namespace.
pub(crate) fn described(value: &Value, kind: &str) -> String {
    let text = |key| value.get("metadata").and_then(|meta| meta.get(key)).and_then(Value::as_str);
    let name = text("name").unwrap_or("without a name");
    if kind == "RuntimeClass" {
        name.to_owned()
    } else {
        format!("{}/{name}", text("namespace").unwrap_or("default"))
    }
}

/// Reads `metadata` of an object whose name must pass `check`.
pub(super) fn metadata(
    object: &mut Fields<'_>,
    check: fn(&str) -> Result<(), names::NameError>,
) -> Metadata {
    let Some(mut fields) = object.fields("metadata") else {
        object.fault("metadata.name", "is required");
        return Metadata::default();
    };
    let name = fields.required("name");
    match check(&name) {
        Err(error) if !name.is_empty() => fields.fault("name", error.to_string()),
        Ok(()) | Err(_) => {}
    }
    let namespace = fields.checked("namespace", names::label);
    let metadata = Metadata {
        name,
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        labels: fields.string_map("labels"),
        annotations: fields.string_map("annotations"),
    };
    fields.drop_silent(&["creationTimestamp"]);
    fields.drop_cluster_only(&[
        "uid",
        "resourceVersion",
        "generation",
        "generateName",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ]);
    fields.finish();
    metadata
}
