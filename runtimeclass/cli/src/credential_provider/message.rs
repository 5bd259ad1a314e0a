//! `CredentialProviderRequest` and `CredentialProviderResponse` of the kubelet.

use std::collections::BTreeMap;

use sandbox_core::Secret;
use sandbox_image::{Candidate, Credential};
use serde::{Deserialize, Serialize};

use super::args::{CacheKey, ProviderArgs};

/// The versions of the API; the fields that are used here are the same in all of them.
const VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Why a message is not valid. Its content is not shown: it may hold a token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the standard input is not a CredentialProviderRequest: line {line}, column {column}")]
    Syntax { line: usize, column: usize },
    #[error("kind {kind:?} of {version:?} is not supported; the kubelet sends a CredentialProviderRequest of {}", VERSIONS[0])]
    Kind { kind: String, version: String },
    #[error("cannot write the answer as JSON")]
    Json(#[source] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest {
    kind: String,
    api_version: String,
    image: String,
}

/// The kubelet's request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) version: String,
    pub(super) image: String,
}

/// Reads a request.
pub(super) fn read(text: &Secret) -> Result<Request, MessageError> {
    let raw: RawRequest = serde_json::from_slice(text.expose())
        .map_err(|error| MessageError::Syntax { line: error.line(), column: error.column() })?;
    let version = raw.api_version;
    if raw.kind != "CredentialProviderRequest" || !VERSIONS.contains(&version.as_str()) {
        return Err(MessageError::Kind { kind: raw.kind, version });
    }
    Ok(Request { version, image: raw.image })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    kind: &'static str,
    api_version: &'a str,
    cache_key_type: &'static str,
    cache_duration: String,
    auth: BTreeMap<String, Auth<'a>>,
}

#[derive(Serialize)]
struct Auth<'a> {
    username: &'a str,
    password: &'a str,
}

/// The credentials that the response has no field for.
pub(super) fn unfit(found: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    found.iter().filter(|it| !matches!(it.credential, Credential::Basic { .. }))
}

/// Writes the response; of several credentials for the same pattern it has the first.
pub(super) fn answer(
    version: &str,
    found: &[Candidate],
    args: &ProviderArgs,
) -> Result<Secret, MessageError> {
    let mut auth = BTreeMap::new();
    for candidate in found {
        if let Credential::Basic { username, password } = &candidate.credential {
            let password = password.expose_text().unwrap_or_default();
            auth.entry(candidate.pattern.to_string()).or_insert(Auth { username, password });
        }
    }
    let response = Response {
        kind: "CredentialProviderResponse",
        api_version: version,
        cache_key_type: match args.cache_key {
            CacheKey::Image => "Image",
            CacheKey::Registry => "Registry",
        },
        cache_duration: format!("{}s", args.cache_duration),
        auth,
    };
    // Large enough for all of it, so that no reallocation leaves an unwiped buffer behind.
    let mut text = Vec::with_capacity(64 * 1024);
    serde_json::to_writer(&mut text, &response).map_err(MessageError::Json)?;
    Ok(Secret::new(text))
}
