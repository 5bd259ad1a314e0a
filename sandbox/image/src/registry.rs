//! A registry client that pulls: OCI distribution over HTTPS, and no more than that.
//!
//! What it holds to: it is nobody until a host asks; a credential is shown to the host that it is
//! for and to the token server that this host names over verified TLS, never to a mirror, never
//! across a redirect; what has a digest is believed only after it was hashed.

mod auth;
mod challenge;
mod dial;
mod endpoint;
mod error;
mod hosts;
mod manifest;
mod retry;
mod tls;
mod token;
mod transport;

use std::sync::Arc;

use base64::Engine as _;
use oci_spec::image::Digest;
use reqwest::Response;
use serde::Deserialize;

pub use error::RegistryError;
pub use hosts::{HostsDirectories, RegistryHost, TlsFiles};
pub use manifest::{Content, Document, MANIFEST_LIMIT};
pub use retry::Retry;

pub(crate) use challenge::Challenge;
#[cfg(any(test, fuzzing))]
pub(crate) use challenge::read as read_challenge;
pub(crate) use dial::{Dialed, dial};
pub(crate) use endpoint::Endpoint;
pub(crate) use error::tls_fault;
#[cfg(any(test, fuzzing))]
pub(crate) use manifest::read as read_document;

use crate::credential::{Candidate, Credential, CredentialSource, Wanted};
use crate::reference::Place;

/// Opens repositories.
#[derive(Clone, Debug)]
pub struct Client {
    directories: HostsDirectories,
    source: Arc<dyn CredentialSource>,
    retry: Retry,
}

/// One repository, on every host that answers for its registry.
#[derive(Debug)]
pub struct Repository {
    place: Place,
    endpoints: Vec<Endpoint>,
}

impl Client {
    /// A client that finds hosts and credentials there.
    pub fn new(
        directories: HostsDirectories,
        source: impl CredentialSource + 'static,
        retry: Retry,
    ) -> Self {
        Self { directories, source: Arc::new(source), retry }
    }

    /// The hosts for a place, in the order in which they are asked.
    ///
    /// # Errors
    ///
    /// When `hosts.toml` cannot be followed.
    pub fn hosts(&self, place: &Place) -> Result<Vec<RegistryHost>, RegistryError> {
        self.directories.hosts(place)
    }

    /// The credentials that `host` would be shown for a place, in the order of trial. Those of the
    /// image's registry are for its own host alone; a mirror gets what is stored for the mirror.
    ///
    /// # Errors
    ///
    /// When a source cannot be read.
    pub async fn candidates(
        &self,
        place: &Place,
        host: &RegistryHost,
    ) -> Result<Vec<Candidate>, RegistryError> {
        if !host.mirror {
            return Ok(self.source.find(Wanted::Place(place)).await?);
        }
        match Place::new(&host.authority(), place.repository()) {
            Ok(mirror) => Ok(self.source.find(Wanted::Place(&mirror)).await?),
            // No credential can be stored for a host that no image can name.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Opens a repository. Nothing is sent before something is asked of it, but that this machine
    /// itself is tried for TLS where the scheme is not configured.
    ///
    /// # Errors
    ///
    /// When the configuration or a source of credentials cannot be read.
    pub async fn open(&self, place: &Place) -> Result<Repository, RegistryError> {
        let mut endpoints = Vec::new();
        for host in self.hosts(place)? {
            endpoints.push(self.endpoint(place, host).await?);
        }
        Ok(Repository { place: place.clone(), endpoints })
    }

    /// One host of a repository.
    pub(crate) async fn endpoint(
        &self,
        place: &Place,
        mut host: RegistryHost,
    ) -> Result<Endpoint, RegistryError> {
        let candidates = self.candidates(place, &host).await?;
        if host.may_be_plain && !dial::speaks_tls(&host).await? {
            host.become_plain();
        }
        Endpoint::new(place, &host, candidates, self.retry)
    }
}

impl Repository {
    /// Host and repository.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The hosts in their order.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Gets a manifest or index by tag or digest from the first host that has it; with a digest it
    /// is verified. Mirrors that fail are passed over.
    ///
    /// # Errors
    ///
    /// What the registry's own host said, if no host has it.
    pub async fn manifest(
        &self,
        selector: &str,
        digest: Option<&Digest>,
    ) -> Result<Document, RegistryError> {
        let mut last = None;
        for endpoint in &self.endpoints {
            if digest.is_none() && !endpoint.resolves() {
                continue;
            }
            match manifest::fetch(endpoint, selector, digest).await {
                Ok(document) => return Ok(document),
                Err(error) => {
                    log::debug!("{}: {error}", endpoint.host());
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NotFound {
            host: self.place.host().to_owned(),
            what: format!("host that may say what {selector:?} is (capabilities in hosts.toml)"),
        }))
    }
}

/// One fault in a registry's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    code: String,
    message: String,
}

impl Said {
    /// The message, or the code where there is none.
    pub(crate) fn line(self) -> String {
        if self.message.is_empty() { self.code } else { self.message }
    }
}

/// The body of an answer, up to a limit.
pub(crate) async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, RegistryError> {
    let host = hosts::authority(response.url());
    let failed = |error: reqwest::Error| RegistryError::of_transport(&host, &error);
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > limit {
            let (what, why) = ("an answer".to_owned(), format!("it is larger than {limit} bytes"));
            return Err(RegistryError::Corrupt { host, what, why });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What a registry says in an answer that is none, in one line.
pub(crate) async fn said(response: Response) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Faults {
        errors: Vec<Said>,
    }
    // The status says enough where the text cannot be read.
    let body = body(response, 64 * 1024).await.unwrap_or_default();
    let faults: Faults = serde_json::from_slice(&body).unwrap_or_default();
    let lines: Vec<String> = faults.errors.into_iter().map(Said::line).collect();
    crate::text::line(&lines.join(", "))
}

/// A server's text without a credential that it may have been shown.
pub(crate) fn redact(text: &str, credential: Option<&Credential>) -> String {
    let secret = credential.and_then(|it| it.secret().expose_text()).unwrap_or_default();
    let pair = match credential {
        Some(Credential::Basic { username, .. }) => {
            base64::engine::general_purpose::STANDARD.encode(format!("{username}:{secret}"))
        }
        Some(Credential::Identity(_) | Credential::Registry(_)) | None => String::new(),
    };
    let pair = sandbox_core::Secret::new(pair);
    crate::text::redacted(text, [secret, pair.expose_text().unwrap_or_default()])
}

#[cfg(test)]
mod tests;
