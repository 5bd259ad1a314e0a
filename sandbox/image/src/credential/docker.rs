//! Docker's `config.json`, and the `auth.json` of podman and skopeo, which has the same format but
//! allows paths in its keys.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use async_trait::async_trait;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sandbox_core::Secret;
use serde::Deserialize;

use super::error::CredentialError;
use super::helper::Helpers;
use super::pattern::{Pattern, Wanted};
use super::source::{Candidate, Credential, CredentialSource};
use crate::reference::DEFAULT_HOST;

/// Upper bound on a credential file; a Kubernetes Secret holds at most 1 MiB.
pub(super) const FILE_LIMIT: u64 = 4 << 20;

/// The key under which Docker stores credentials for Docker Hub.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// Base64 with or without padding: both are found in practice.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A configuration file of Docker or podman.
#[derive(Debug)]
pub struct DockerConfig {
    location: String,
    has_auths: bool,
    stored: Vec<Candidate>,
    /// `credHelpers`: host to helper.
    by_host: BTreeMap<String, String>,
    /// `credsStore`: the helper for every other host.
    store: Option<String>,
    helpers: Option<Helpers>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawConfig {
    #[serde(default)]
    pub(super) auths: Option<BTreeMap<String, RawEntry>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawEntry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

impl DockerConfig {
    /// Reads a file. The credential helpers it names are run only if `helpers` is `Some`.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is not a Docker configuration.
    pub fn read(path: &Path, helpers: Option<Helpers>) -> Result<Self, CredentialError> {
        Self::parse(&path.display().to_string(), &content(path)?, helpers)
    }

    /// Parses the text of a file; `location` is its name in messages.
    ///
    /// # Errors
    ///
    /// When it is not a Docker configuration.
    pub fn parse(
        location: &str,
        text: &Secret,
        helpers: Option<Helpers>,
    ) -> Result<Self, CredentialError> {
        let raw: RawConfig = json(location, text)?;
        Ok(Self {
            location: location.to_owned(),
            has_auths: raw.auths.is_some(),
            stored: candidates(location, raw.auths.unwrap_or_default())?,
            by_host: raw.cred_helpers.unwrap_or_default(),
            store: raw.creds_store.filter(|name| !name.is_empty()),
            helpers,
        })
    }

    /// The credentials in the file itself, without those of helpers.
    pub(crate) fn into_stored(self) -> Vec<Candidate> {
        self.stored
    }

    /// Whether it names no credential and no helper.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_auths && self.by_host.is_empty() && self.store.is_none()
    }

    /// The helper for a host, and the server name to pass to it.
    fn helper(&self, host: &str) -> Option<(&str, String)> {
        let named = self
            .by_host
            .iter()
            .find(|(key, _)| Pattern::parse(key).is_ok_and(|key| key.to_string() == host));
        let server = if host == DEFAULT_HOST { DOCKER_KEY } else { host };
        match named {
            // An empty name disables `credsStore` for this host.
            Some((_, helper)) if helper.is_empty() => None,
            Some((key, helper)) => Some((helper, key.clone())),
            None => self.store.as_deref().map(|store| (store, server.to_owned())),
        }
    }
}

#[async_trait]
impl CredentialSource for DockerConfig {
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError> {
        let mut found = Vec::new();
        if let (Some((helper, server)), Some(helpers)) = (self.helper(wanted.host()), &self.helpers)
        {
            found.extend(helpers.ask(helper, &server, &self.location).await?);
        }
        found.extend(self.stored.find(wanted).await?);
        Ok(found)
    }
}

/// Reads a file of at most [`FILE_LIMIT`] bytes.
pub(super) fn content(path: &Path) -> Result<Secret, CredentialError> {
    let error = |source| CredentialError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let size = file.metadata().map_err(error)?.len();
    // Allocated in full at once: growing would leave smaller, unwiped buffers behind.
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(FILE_LIMIT)).unwrap_or(0) + 1);
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(error)?;
    let content = Secret::new(bytes);
    if content.expose().len() as u64 > FILE_LIMIT {
        let why = "it is larger than 4 MiB";
        return Err(CredentialError::content(path.display().to_string(), why));
    }
    Ok(content)
}

/// Parses JSON. The parser's own errors may contain values, so they are not passed on.
pub(super) fn json<'a, T: Deserialize<'a>>(
    location: &str,
    text: &'a Secret,
) -> Result<T, CredentialError> {
    serde_json::from_slice(text.expose()).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "unexpected value",
            serde_json::error::Category::Eof => "unexpected end of file",
            serde_json::error::Category::Io | serde_json::error::Category::Syntax => "invalid JSON",
        };
        let line = error.line();
        let column = error.column();
        let why = format!("not a Docker configuration: line {line}, column {column}: {what}");
        CredentialError::content(location, why)
    })
}

/// Converts the entries of `auths`, or of a whole file in the `.dockercfg` format.
pub(super) fn candidates(
    location: &str,
    entries: BTreeMap<String, RawEntry>,
) -> Result<Vec<Candidate>, CredentialError> {
    let mut found = Vec::new();
    for (key, entry) in entries {
        let origin = format!("{location}: entry {key:?}");
        let error = |why: &str| CredentialError::content(&origin, why);
        let Some(credential) = credential(entry).map_err(error)? else { continue };
        let pattern = Pattern::parse(&key).map_err(|e| error(&e.to_string()))?;
        found.push(Candidate { credential, pattern, origin });
    }
    Ok(found)
}

/// `None` for an empty entry, which Docker writes when the credential is in `credsStore`.
fn credential(entry: RawEntry) -> Result<Option<Credential>, &'static str> {
    const INCOMPLETE: &str =
        "it has neither a username and password, nor a base64 auth of both, nor a token";
    let some = |secret: Option<Secret>| secret.filter(|secret| !secret.is_empty());
    if let Some(token) = some(entry.identitytoken) {
        return Ok(Some(Credential::Identity(token)));
    }
    if let Some(token) = some(entry.registrytoken) {
        return Ok(Some(Credential::Registry(token)));
    }
    if let Some(auth) = some(entry.auth) {
        return decode(&auth).map(Some).ok_or(INCOMPLETE);
    }
    let username = entry.username.filter(|name| !name.is_empty());
    match (username, some(entry.password)) {
        (Some(username), Some(password)) => Ok(Some(Credential::Basic { username, password })),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => Err(INCOMPLETE),
    }
}

/// `base64(user:password)`.
fn decode(auth: &Secret) -> Option<Credential> {
    let decoded = base64(auth)?;
    let text = decoded.expose_text()?.trim_end_matches('\0');
    let (username, password) = text.split_once(':')?;
    if username.is_empty() {
        return None;
    }
    Some(Credential::Basic { username: username.to_owned(), password: Secret::new(password) })
}

/// Decodes base64, ignoring whitespace in it.
pub(super) fn base64(text: &Secret) -> Option<Secret> {
    let mut bare = Vec::with_capacity(text.expose().len());
    bare.extend(text.expose().iter().filter(|byte| !byte.is_ascii_whitespace()));
    let bare = Secret::new(bare);
    BASE64.decode(bare.expose()).ok().map(Secret::new)
}
