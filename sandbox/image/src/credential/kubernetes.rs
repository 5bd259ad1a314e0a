//! Kubernetes Secrets of the two types that hold registry credentials.

use std::collections::BTreeMap;
use std::path::Path;

use sandbox_core::Secret;
use serde::Deserialize;

use super::docker::{self, DockerConfig, RawEntry};
use super::error::CredentialError;
use super::source::Candidate;

/// The data key and the type of a Secret.
const NEW: (&str, &str) = (".dockerconfigjson", "kubernetes.io/dockerconfigjson");
const OLD: (&str, &str) = (".dockercfg", "kubernetes.io/dockercfg");
/// Upper bound on nested Lists; tools do not nest them.
const DEPTH_LIMIT: usize = 4;

/// The part read of every document, whatever its kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawObject {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default, rename = "type")]
    secret_type: Option<String>,
    #[serde(default)]
    data: Option<BTreeMap<String, Secret>>,
    #[serde(default)]
    string_data: Option<BTreeMap<String, Secret>>,
    #[serde(default)]
    items: Vec<RawObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: Option<String>,
}

/// Reads the credentials in a file: Kubernetes Secrets as YAML or JSON, possibly in a List or among
/// other objects, or a plain Docker configuration. Credential helpers are never run for such a
/// file.
///
/// # Errors
///
/// When the file cannot be read or has no Secret of a suitable type.
pub fn secret_file(path: &Path) -> Result<Vec<Candidate>, CredentialError> {
    let content = docker::content(path)?;
    secret_text(&path.display().to_string(), &content)
}

/// As [`secret_file`]; `location` is the name of the text in messages.
pub(crate) fn secret_text(
    location: &str,
    text: &Secret,
) -> Result<Vec<Candidate>, CredentialError> {
    let plain =
        text.expose_text().ok_or_else(|| CredentialError::content(location, "not UTF-8"))?;
    if plain.trim_start().starts_with('{') && !is_object(plain) {
        return docker_text(location, text);
    }
    let mut found = None;
    let headers = serde_norway::Deserializer::from_str(plain);
    let documents = serde_norway::Deserializer::from_str(plain);
    for (at, (header, document)) in headers.zip(documents).enumerate() {
        let location = format!("{location}: document {}", at + 1);
        let not_yaml =
            |error: serde_norway::Error| CredentialError::content(&location, yaml_error(&error));
        // An empty document has no kind.
        let header = Option::<Header>::deserialize(header).map_err(not_yaml)?.unwrap_or_default();
        if matches!(header.kind.as_str(), "Secret" | "List" | "SecretList") {
            let object = RawObject::deserialize(document).map_err(not_yaml)?;
            collect(&location, object, &mut found, 0)?;
        }
    }
    found.ok_or_else(|| {
        let why = format!("it holds no Secret of type {} or {}", NEW.1, OLD.1);
        CredentialError::content(location, why)
    })
}

/// Whether a JSON text is a Kubernetes object.
fn is_object(text: &str) -> bool {
    serde_json::from_str::<Header>(text).is_ok_and(|header| !header.kind.is_empty())
}

/// The position of a YAML error; the parser's own message may contain a value.
fn yaml_error(error: &serde_norway::Error) -> String {
    match error.location() {
        Some(at) => format!(
            "line {}, column {}: invalid YAML or not a valid Secret",
            at.line(),
            at.column()
        ),
        None => "invalid YAML or not a valid Secret".to_owned(),
    }
}

fn collect(
    location: &str,
    mut object: RawObject,
    found: &mut Option<Vec<Candidate>>,
    depth: usize,
) -> Result<(), CredentialError> {
    if depth > DEPTH_LIMIT {
        return Err(CredentialError::content(location, "Lists are nested too deeply"));
    }
    for item in std::mem::take(&mut object.items) {
        collect(location, item, found, depth + 1)?;
    }
    let secret_type = object.secret_type.clone().unwrap_or_default();
    let wanted = secret_type == NEW.1 || secret_type == OLD.1;
    // Items of a SecretList have no kind of their own.
    if !wanted || !matches!(object.kind.as_str(), "Secret" | "") {
        return Ok(());
    }
    let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
    let location = format!("{location} (Secret {namespace}/{})", object.metadata.name);
    let mut data = BTreeMap::new();
    for (key, value) in object.data.unwrap_or_default() {
        let decoded = docker::base64(&value).ok_or_else(|| {
            CredentialError::content(&location, format!("data[{key:?}] is not base64"))
        })?;
        data.insert(key, decoded);
    }
    data.extend(object.string_data.unwrap_or_default());
    found.get_or_insert_default().extend(pull_secret(&location, &secret_type, &data)?);
    Ok(())
}

/// The credentials in one Secret with decoded `data`; `location` is its name in messages.
///
/// # Errors
///
/// When the type is not one for registry credentials, or the data does not match the type.
pub fn pull_secret(
    location: &str,
    secret_type: &str,
    data: &BTreeMap<String, Secret>,
) -> Result<Vec<Candidate>, CredentialError> {
    let key = match secret_type {
        kind if kind == NEW.1 => NEW.0,
        kind if kind == OLD.1 => OLD.0,
        kind => {
            return Err(CredentialError::Type {
                location: location.to_owned(),
                kind: kind.to_owned(),
            });
        }
    };
    let location = format!("{location}: data[{key:?}]");
    let text = data.get(key).ok_or_else(|| CredentialError::content(&location, "is missing"))?;
    if key == NEW.0 {
        let raw: docker::RawConfig = docker::json(&location, text)?;
        let entries = raw.auths.ok_or_else(|| {
            CredentialError::content(&location, "not a Docker configuration: it has no auths")
        })?;
        docker::candidates(&location, entries)
    } else {
        old_text(&location, text)
    }
}

/// Parses a Docker configuration in the current or the `.dockercfg` format; helpers are not run.
fn docker_text(location: &str, text: &Secret) -> Result<Vec<Candidate>, CredentialError> {
    match DockerConfig::parse(location, text, None) {
        Ok(config) if !config.is_empty() => Ok(config.into_stored()),
        // `.dockercfg` is the map of entries itself and shares no key with the current format.
        Ok(_) => old_text(location, text),
        Err(error) => Err(error),
    }
}

/// Parses a Docker configuration in the `.dockercfg` format.
pub(super) fn old_text(location: &str, text: &Secret) -> Result<Vec<Candidate>, CredentialError> {
    let entries: BTreeMap<String, RawEntry> = docker::json(location, text)?;
    docker::candidates(location, entries)
}
