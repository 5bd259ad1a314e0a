//! One host of a repository: authenticated requests with retries.

use std::time::Duration;

use oci_spec::image::Digest;
use reqwest::Response;

use super::auth::Auth;
use super::challenge::{self, Challenge};
use super::error::RegistryError;
use super::host::{RegistryHost, authority};
use super::response::error_message;
use super::retry::{self, Retry};
use super::transport::{GetRequest, GetResponse, Transport};
use crate::credential::Candidate;
use crate::reference::Place;

/// One host of a repository.
#[derive(Debug)]
pub(crate) struct Endpoint {
    transport: Transport,
    auth: Auth,
    place: Place,
    resolves: bool,
    /// The image's registry, if this host is a mirror.
    namespace: Option<String>,
    /// Upper bound on attempts to authenticate one request.
    rounds: usize,
    retry: Retry,
}

/// An error, and the delay from `Retry-After`.
type Failure = (RegistryError, Option<Duration>);

impl Endpoint {
    pub(super) fn new(
        place: &Place,
        host: &RegistryHost,
        candidates: Vec<Candidate>,
        retry: Retry,
    ) -> Result<Self, RegistryError> {
        // Each candidate once, an expired token, an anonymous request and an anonymous token.
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

    /// Whether it may resolve tags.
    pub(super) fn resolves(&self) -> bool {
        self.resolves
    }

    /// The base URL of its API.
    pub(crate) fn url(&self) -> String {
        self.transport.base.to_string()
    }

    /// Its last challenge.
    pub(crate) async fn challenge(&self) -> Option<Challenge> {
        self.auth.challenge().await
    }

    pub(crate) fn retry(&self) -> &Retry {
        &self.retry
    }

    /// The credential in use.
    pub(crate) async fn candidate(&self) -> Option<Candidate> {
        self.auth.candidate().await
    }

    /// Gets a blob from the offset `from`.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64) -> Result<Response, RegistryError> {
        self.get(&format!("blobs/{digest}"), &[], from, &format!("blob {digest}")).await
    }

    /// Gets `/v2/REPOSITORY/PATH` from the offset `from`; `what` is its name in messages.
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
            let exhausted = failures >= self.retry.attempts || pause > self.retry.longest;
            if exhausted || !(limited || error.is_transient()) {
                return Err(error);
            }
            tracing::debug!(?pause, "{error}; retrying");
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
            let authorization = self.auth.authorization().await;
            let header = authorization.header.clone();
            let request = GetRequest { url: url.clone(), accept, from, authorization: header };
            let GetResponse { response, from_registry } =
                self.transport.get(request).await.map_err(|error| (error, None))?;
            status = response.status().as_u16();
            match status {
                200 | 206 => {
                    self.auth.accepted(&authorization).await;
                    return Ok(response);
                }
                401 | 403 if from_registry => {
                    let challenge = challenge::parse(response.headers());
                    let message = self.auth.redact(&error_message(response).await);
                    let message = if message.is_empty() { status.to_string() } else { message };
                    self.auth
                        .rejected(&self.transport, &authorization, challenge, &message)
                        .await
                        .map_err(|error| (error, None))?;
                }
                _ => return Err(self.failure(response, what).await),
            }
        }
        let message = "with every credential".to_owned();
        let what = what.to_owned();
        Err((RegistryError::Status { host: self.host(), status, what, message }, None))
    }

    async fn failure(&self, response: Response, what: &str) -> Failure {
        let host = authority(response.url());
        let status = response.status().as_u16();
        let what = what.to_owned();
        let after = retry::after(response.headers());
        match status {
            404 => (RegistryError::NotFound { host, what }, None),
            429 => (RegistryError::RateLimited { host, after }, after),
            _ => {
                let message = self.auth.redact(&error_message(response).await);
                (RegistryError::Status { host, status, what, message }, after)
            }
        }
    }
}
