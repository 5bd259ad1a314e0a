//! Files to documents to objects.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;

use crate::check;
use crate::findings::{Fault, Findings};
use crate::manifest::Manifest;
use crate::node::{Node, Scope};
use crate::read;

/// Why the files could not be read into a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file could not be opened or read.
    #[error("cannot read {path}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not YAML.
    #[error("{file}: document {number} is not YAML")]
    Syntax {
        /// The file's name.
        file: String,
        /// The document in the file, from 1.
        number: usize,
        /// The parser's error, with line and column.
        source: serde_norway::Error,
    },
    /// A document has a value that JSON, and so Kubernetes, cannot express.
    #[error("{file}: document {number} cannot be turned into JSON")]
    Json {
        /// The file's name.
        file: String,
        /// The document in the file, from 1.
        number: usize,
        /// The conversion's error.
        source: serde_json::Error,
    },
    /// What the files ask for is wrong or not supported: every fault of all of them.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    let noun = if faults.len() == 1 { "fault" } else { "faults" };
    format!("{} {noun}{}", faults.len(), lines.concat())
}

/// Reads every document of every file and checks them together; `-` is the standard input.
///
/// # Errors
///
/// [`ReadError::Faults`] has all faults of all files; the other errors stop at once.
pub fn read_files(files: &[PathBuf], findings: &Findings) -> Result<Manifest, ReadError> {
    let mut manifest = Manifest::default();
    for path in files {
        read_file(path, findings, &mut manifest)?;
    }
    check::references(&manifest, findings);
    let faults = findings.take_faults();
    if faults.is_empty() { Ok(manifest) } else { Err(ReadError::Faults(faults)) }
}

/// Reads the documents of one file into the manifest, without checks across documents; `-` is the standard input.
///
/// # Errors
///
/// [`ReadError`], but never `Faults`: faults are recorded in `findings`.
pub fn read_file(
    path: &Path,
    findings: &Findings,
    manifest: &mut Manifest,
) -> Result<(), ReadError> {
    let name = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    read_text(&name, &content(path)?, findings, manifest)
}

fn content(path: &Path) -> Result<String, ReadError> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|source| ReadError::File { path: path.to_owned(), source })
}

/// Reads the documents of one text into the manifest, without checks across documents; `file` names it in messages.
///
/// # Errors
///
/// As [`read_file`].
pub fn read_text(
    file: &str,
    text: &str,
    findings: &Findings,
    manifest: &mut Manifest,
) -> Result<(), ReadError> {
    for (at, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        let number = at + 1;
        let syntax = |source| ReadError::Syntax { file: file.to_owned(), number, source };
        // Through the parser's own value, which refuses duplicate keys.
        let mut value = serde_norway::Value::deserialize(document).map_err(syntax)?;
        value.apply_merge().map_err(syntax)?;
        let value = serde_json::to_value(value).map_err(|source| ReadError::Json {
            file: file.to_owned(),
            number,
            source,
        })?;
        if !value.is_null() {
            read_object(&format!("{file}: document {number}"), value, findings, manifest);
        }
    }
    Ok(())
}

fn read_object(place: &str, value: Value, findings: &Findings, manifest: &mut Manifest) {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = text("kind");
    let version = text("apiVersion");
    let kind = match (version.as_str(), kind.as_str()) {
        ("v1", "List") => return read_list(place, value, findings, manifest),
        ("v1", "Pod" | "Secret" | "ConfigMap") => kind,
        ("node.k8s.io/v1", "RuntimeClass") => kind,
        _ => return findings.fault(place, "", unsupported_kind(&version, &kind)),
    };
    let scope = Scope {
        document: format!("{place} ({kind} {})", read::described(&value, &kind)),
        findings,
        shown: kind != "Secret",
    };
    let Some(mut fields) = Node::root(&scope, value).fields() else { return };
    fields.drop_silent(&["kind", "apiVersion"]);
    match kind.as_str() {
        "Pod" => manifest.pods.extend(read::pod(&scope.document, fields)),
        "Secret" => manifest.secrets.push(read::secret(&scope.document, fields)),
        "ConfigMap" => manifest.config_maps.push(read::config_map(&scope.document, fields)),
        _ => manifest.runtime_classes.push(read::runtime_class(&scope.document, fields)),
    }
}

fn read_list(place: &str, mut value: Value, findings: &Findings, manifest: &mut Manifest) {
    let items = value.get_mut("items").map(Value::take);
    let Some(Value::Array(items)) = items else {
        return findings.fault(place, "items", "a List must have a list of items");
    };
    for (at, item) in items.into_iter().enumerate() {
        read_object(&format!("{place} item {}", at + 1), item, findings, manifest);
    }
}

fn unsupported_kind(version: &str, kind: &str) -> String {
    let remedy = match kind {
        "" => "every document needs apiVersion and kind".to_owned(),
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "CronJob"
        | "ReplicationController" => {
            format!(
                "play runs Pods: put the Pod template of this {kind} into a document of kind Pod"
            )
        }
        _ => {
            "play supports v1 Pod, Secret, ConfigMap, List and node.k8s.io/v1 RuntimeClass; remove it"
                .to_owned()
        }
    };
    format!("apiVersion {version:?}, kind {kind:?} is not supported: {remedy}")
}
