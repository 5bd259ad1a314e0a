//! The client, and the repositories it opens.

use std::sync::Arc;

use oci_spec::image::Digest;

use super::dial;
use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::host::RegistryHost;
use super::hosts::HostsDirectories;
use super::manifest::{self, Document};
use super::retry::Retry;
use crate::credential::{Candidate, CredentialSource, Wanted};
use crate::reference::Place;

/// A registry client.
#[derive(Clone, Debug)]
pub struct Client {
    directories: HostsDirectories,
    source: Arc<dyn CredentialSource>,
    retry: Retry,
}

/// One repository on every host that serves its registry.
#[derive(Debug)]
pub(crate) struct Repository {
    place: Place,
    endpoints: Vec<Endpoint>,
}

impl Client {
    /// A client that looks up hosts in `directories` and credentials in `source`.
    pub fn new(
        directories: HostsDirectories,
        source: impl CredentialSource + 'static,
        retry: Retry,
    ) -> Self {
        Self { directories, source: Arc::new(source), retry }
    }

    /// The hosts for a place, in the order in which they are tried.
    ///
    /// # Errors
    ///
    /// When `hosts.toml` is invalid or cannot be read.
    pub fn hosts(&self, place: &Place) -> Result<Vec<RegistryHost>, RegistryError> {
        self.directories.hosts(place)
    }

    /// The credentials for a place that would be sent to `host`, in the order in which they are
    /// tried. Credentials for the image's registry go to its own host only; a mirror receives those
    /// stored for the mirror's name.
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
            // No credential can be stored for a host that is not valid in an image reference.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Opens a repository. Sends no request, but connects to a loopback host without a configured
    /// scheme to find out whether it speaks TLS.
    ///
    /// # Errors
    ///
    /// When the configuration or a credential source cannot be read.
    pub(crate) async fn open(&self, place: &Place) -> Result<Repository, RegistryError> {
        let mut endpoints = Vec::new();
        for host in self.hosts(place)? {
            endpoints.push(self.endpoint(place, host).await?);
        }
        Ok(Repository { place: place.clone(), endpoints })
    }

    /// Opens a repository on one host.
    pub(crate) async fn endpoint(
        &self,
        place: &Place,
        mut host: RegistryHost,
    ) -> Result<Endpoint, RegistryError> {
        let candidates = self.candidates(place, &host).await?;
        if host.allows_http && !dial::speaks_tls(&host).await? {
            host.use_http();
        }
        Endpoint::new(place, &host, candidates, self.retry)
    }
}

impl Repository {
    /// A repository on one host only.
    pub(crate) fn single(endpoint: Endpoint) -> Self {
        Self { place: endpoint.place().clone(), endpoints: vec![endpoint] }
    }

    /// Host and repository.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The hosts in the order in which they are tried.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Gets a manifest or index by tag or digest from the first host that has it, and verifies it
    /// if `digest` is `Some`. Falls through to the next host when a mirror fails.
    ///
    /// # Errors
    ///
    /// That of the registry's own host, which is tried last, if no host has it.
    pub(crate) async fn manifest(
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
                    tracing::debug!("{error}");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NotFound {
            host: self.place.host().to_owned(),
            what: format!("host that may resolve {selector:?} (capabilities in hosts.toml)"),
        }))
    }
}
