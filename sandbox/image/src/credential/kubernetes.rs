//! Kubernetes Secrets of the two types that hold registry credentials.

use std::collections::BTreeMap;
use std::path::Path;

use sandbox_core::Secret;
use serde::Deserialize;

use super::docker::{self, RawEntry};
use super::{Candidate, CredentialError, DockerConfig};

/// A Secret's key and its type.
const NEW: (&str, &str) = (".dockerconfigjson", "kubernetes.io/dockerconfigjson");
const OLD: (&str, &str) = (".dockercfg", "kubernetes.io/dockercfg");
/// A List in a List in a List is not something that a tool writes.
const DEPTH_LIMIT: usize = 4;

/// What is read of every document, whatever it is.
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

/// The credentials in a file: Kubernetes Secrets as YAML or JSON, also in a List and among other
/// objects, or a Docker configuration as it is. Credential helpers are never run for such a file.
///
/// # Errors
///
/// When the file cannot be read, or holds no credential.
pub fn secret_file(path: &Path) -> Result<Vec<Candidate>, CredentialError> {
    let content = docker::content(path)?;
    secret_text(&path.display().to_string(), &content)
}

/// The credentials in a text that messages call `place`.
pub(crate) fn secret_text(place: &str, text: &Secret) -> Result<Vec<Candidate>, CredentialError> {
    let plain = text.expose_text().ok_or_else(|| CredentialError::content(place, "not UTF-8"))?;
    if plain.trim_start().starts_with('{') && !is_object(plain) {
        return docker_text(place, text);
    }
    let mut found = None;
    let headers = serde_norway::Deserializer::from_str(plain);
    let documents = serde_norway::Deserializer::from_str(plain);
    for (at, (header, document)) in headers.zip(documents).enumerate() {
        let place = format!("{place}: document {}", at + 1);
        let not_yaml = |error: serde_norway::Error| CredentialError::content(&place, fault(&error));
        // An empty document has no kind.
        let header = Option::<Header>::deserialize(header).map_err(not_yaml)?.unwrap_or_default();
        if matches!(header.kind.as_str(), "Secret" | "List" | "SecretList") {
            let object = RawObject::deserialize(document).map_err(not_yaml)?;
            collect(&place, object, &mut found, 0)?;
        }
    }
    found.ok_or_else(|| {
        let why = format!("it holds no Secret of type {} or {}", NEW.1, OLD.1);
        CredentialError::content(place, why)
    })
}

/// Whether a JSON text is an object of Kubernetes.
fn is_object(text: &str) -> bool {
    serde_json::from_str::<Header>(text).is_ok_and(|header| !header.kind.is_empty())
}

/// Where a YAML parser stopped; its own words may hold a value.
fn fault(error: &serde_norway::Error) -> String {
    match error.location() {
        Some(at) => format!(
            "line {}, column {} is not what a Secret has there, or not YAML",
            at.line(),
            at.column()
        ),
        None => "it is not a Secret, or not YAML".to_owned(),
    }
}

fn collect(
    place: &str,
    mut object: RawObject,
    found: &mut Option<Vec<Candidate>>,
    depth: usize,
) -> Result<(), CredentialError> {
    if depth > DEPTH_LIMIT {
        return Err(CredentialError::content(place, "Lists are nested too deeply"));
    }
    for item in std::mem::take(&mut object.items) {
        collect(place, item, found, depth + 1)?;
    }
    // Items of a SecretList have no kind of their own.
    let secret_type = object.secret_type.clone().unwrap_or_default();
    let wanted = secret_type == NEW.1 || secret_type == OLD.1;
    if !wanted || !matches!(object.kind.as_str(), "Secret" | "") {
        return Ok(());
    }
    let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
    let place = format!("{place} (Secret {namespace}/{})", object.metadata.name);
    let mut data = BTreeMap::new();
    for (key, value) in object.data.unwrap_or_default() {
        let decoded = docker::base64(&value).ok_or_else(|| {
            CredentialError::content(&place, format!("data[{key:?}] is not base64"))
        })?;
        data.insert(key, decoded);
    }
    data.extend(object.string_data.unwrap_or_default());
    found.get_or_insert_default().extend(pull_secret(&place, &secret_type, &data)?);
    Ok(())
}

/// The credentials of one Secret, its data decoded; messages call it `place`.
///
/// # Errors
///
/// When the type is none that holds registry credentials, or the data is not what the type says.
pub fn pull_secret(
    place: &str,
    secret_type: &str,
    data: &BTreeMap<String, Secret>,
) -> Result<Vec<Candidate>, CredentialError> {
    let key = match secret_type {
        kind if kind == NEW.1 => NEW.0,
        kind if kind == OLD.1 => OLD.0,
        kind => {
            let (place, kind) = (place.to_owned(), kind.to_owned());
            return Err(CredentialError::Type { place, kind });
        }
    };
    let place = format!("{place}: data[{key:?}]");
    let text = data.get(key).ok_or_else(|| CredentialError::content(&place, "is missing"))?;
    if key == NEW.0 {
        let raw: docker::RawConfig = docker::json(&place, text)?;
        let entries = raw.auths.ok_or_else(|| {
            CredentialError::content(&place, "not a Docker configuration: it has no auths")
        })?;
        docker::candidates(&place, entries)
    } else {
        old_text(&place, text)
    }
}

/// A Docker configuration in its new or old form; helpers are not run.
pub(super) fn docker_text(place: &str, text: &Secret) -> Result<Vec<Candidate>, CredentialError> {
    match DockerConfig::parse(place, text, None) {
        Ok(config) if !config.is_empty() => Ok(config.into_stored()),
        // The old form is the entries alone; it has no key in common with the new one.
        Ok(_) => old_text(place, text),
        Err(error) => Err(error),
    }
}

pub(super) fn old_text(place: &str, text: &Secret) -> Result<Vec<Candidate>, CredentialError> {
    let entries: BTreeMap<String, RawEntry> = docker::json(place, text)?;
    docker::candidates(place, entries)
}
