//! One host of a repository: requests with a pass, made again where that may help.

use std::time::Duration;

use oci_spec::image::Digest;
use reqwest::Response;

use super::auth::Auth;
use super::hosts::RegistryHost;
use super::transport::{Answer, Ask, Transport};
use super::{Challenge, RegistryError, Repository, Retry, challenge, retry, said};
use crate::credential::Candidate;
use crate::reference::Place;

/// One host of a repository.
#[derive(Debug)]
pub(crate) struct Endpoint {
    transport: Transport,
    auth: Auth,
    place: Place,
    resolves: bool,
    /// The image's registry, where this is not it.
    namespace: Option<String>,
    rounds: usize,
    retry: Retry,
}

/// A failure, and how long the host wants to be left alone.
type Failure = (RegistryError, Option<Duration>);

impl Endpoint {
    pub(super) fn new(
        place: &Place,
        host: &RegistryHost,
        candidates: Vec<Candidate>,
        retry: Retry,
    ) -> Result<Self, RegistryError> {
        // Each candidate once, a token that ran out, and nobody.
        let rounds = candidates.len() + 3;
        Ok(Self {
            transport: Transport::new(host)?,
            auth: Auth::new(place.repository(), candidates),
            place: place.clone(),
            resolves: host.resolves,
            namespace: host.mirror.then(|| place.host().to_owned()),
            rounds,
            retry,
        })
    }

    /// Host and port, for messages.
    pub(crate) fn host(&self) -> String {
        self.transport.host()
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether it may say what a tag is.
    pub(super) fn resolves(&self) -> bool {
        self.resolves
    }

    /// The address of its API.
    pub(crate) fn url(&self) -> String {
        self.transport.base.to_string()
    }

    /// A repository that has this host alone.
    pub(crate) fn alone(self) -> Repository {
        Repository { place: self.place.clone(), endpoints: vec![self] }
    }

    /// What it asked for, if it did.
    pub(crate) async fn challenge(&self) -> Option<Challenge> {
        self.auth.challenge().await
    }

    pub(crate) fn retry(&self) -> &Retry {
        &self.retry
    }

    /// The credential that is shown now, if any.
    pub(crate) async fn candidate(&self) -> Option<Candidate> {
        self.auth.candidate().await
    }

    /// Gets a blob's bytes from that offset on.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64) -> Result<Response, RegistryError> {
        self.get(&format!("blobs/{digest}"), &[], from, &format!("blob {digest}")).await
    }

    /// Gets `/v2/REPOSITORY/PATH`; `what` names it in messages.
    pub(super) async fn get(
        &self,
        path: &str,
        accept: &[&str],
        from: u64,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let mut failures = 0;
        loop {
            let (error, after) = match self.once(path, accept, from, what).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let limited = matches!(error, RegistryError::RateLimited { .. });
            failures += 1;
            let pause = after.unwrap_or_else(|| self.retry.pause(failures));
            let hopeless = failures >= self.retry.attempts || pause > self.retry.longest;
            if hopeless || !(limited || error.is_passing()) {
                return Err(error);
            }
            log::debug!("{error}; again in {pause:?}");
            tokio::time::sleep(pause).await;
        }
    }

    async fn once(
        &self,
        path: &str,
        accept: &[&str],
        from: u64,
        what: &str,
    ) -> Result<Response, Failure> {
        let mut url = self.transport.base.clone();
        url.set_path(&format!("{}/{}/{path}", url.path(), self.place.repository()));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let mut status = 401;
        for _ in 0..self.rounds {
            let pass = self.auth.pass().await;
            let authorization = pass.header.clone();
            let ask = Ask { url: url.clone(), accept, from, authorization };
            let Answer { response, own } =
                self.transport.get(ask).await.map_err(|error| (error, None))?;
            status = response.status().as_u16();
            match status {
                200 | 206 => {
                    self.auth.taken(&pass).await;
                    return Ok(response);
                }
                401 | 403 if own => {
                    let challenge = challenge::read(response.headers());
                    let said = self.auth.redact(&said(response).await);
                    let said = if said.is_empty() { status.to_string() } else { said };
                    let refused = self.auth.refused(&self.transport, &pass, challenge, &said);
                    refused.await.map_err(|error| (error, None))?;
                }
                _ => return Err(self.failure(response, what).await),
            }
        }
        let (host, what) = (self.host(), what.to_owned());
        let said = "whatever it is shown".to_owned();
        Err((RegistryError::Status { host, status, what, said }, None))
    }

    async fn failure(&self, response: Response, what: &str) -> Failure {
        let host = super::hosts::authority(response.url());
        let (status, what) = (response.status().as_u16(), what.to_owned());
        let after = retry::after(response.headers());
        match status {
            404 => (RegistryError::NotFound { host, what }, None),
            429 => (RegistryError::RateLimited { host, after }, after),
            _ => {
                let said = self.auth.redact(&said(response).await);
                (RegistryError::Status { host, status, what, said }, after)
            }
        }
    }
}
