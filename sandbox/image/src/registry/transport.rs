//! HTTP requests: with credentials and configured headers to the registry's own host, without them
//! to others.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, Url};

use super::error::RegistryError;
use super::host::{RegistryHost, authority, is_loopback};
use super::tls;

/// Fails a response when no data arrives for this long.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Upper bound on redirects of one request.
const MAX_REDIRECTS: usize = 5;
const USER_AGENT: &str = concat!("bulkhead/", env!("CARGO_PKG_VERSION"));

/// The HTTP clients for one registry host.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) base: Url,
    headers: HeaderMap,
    /// For the host itself, with its client certificate and `skip_verify`.
    own: Client,
    /// For redirect targets and token servers.
    others: Client,
    /// Whether the host is authenticated by TLS.
    pub(super) verified: bool,
}

/// A GET request.
#[derive(Clone, Debug)]
pub(super) struct GetRequest<'a> {
    pub(super) url: Url,
    pub(super) accept: &'a [&'a str],
    pub(super) from: u64,
    pub(super) authorization: Option<HeaderValue>,
}

/// A response to a GET request.
#[derive(Debug)]
pub(super) struct GetResponse {
    pub(super) response: Response,
    /// Whether it is from the registry's own host rather than a redirect target.
    pub(super) from_registry: bool,
}

impl Transport {
    pub(super) fn new(host: &RegistryHost) -> Result<Self, RegistryError> {
        let base = host.url.clone();
        let local = base.host_str().is_some_and(is_loopback);
        // Proxies are used for https to other machines only.
        let direct = local || base.scheme() == "http";
        let own = client(tls::config(&host.tls)?, host.dial_timeout, direct)?;
        let others = client(tls::config_for_others(&host.tls)?, host.dial_timeout, direct)?;
        let verified = base.scheme() == "https" && !host.tls.skip_verify;
        Ok(Self { base, headers: host.headers.clone(), own, others, verified })
    }

    /// Host and port, for messages.
    pub(super) fn host(&self) -> String {
        authority(&self.base)
    }

    /// Sends a request and follows redirects.
    pub(super) async fn get(&self, request: GetRequest<'_>) -> Result<GetResponse, RegistryError> {
        let mut url = request.url.clone();
        let mut own = true;
        for _ in 0..=MAX_REDIRECTS {
            // After a redirect to another host the credential is withheld, even if a later one
            // leads back.
            own = own && url.origin() == self.base.origin();
            let client = if own { &self.own } else { &self.others };
            let mut builder = client.request(Method::GET, url.clone());
            if own {
                builder = builder.headers(self.headers.clone());
                if let Some(authorization) = &request.authorization {
                    builder = builder.header(AUTHORIZATION, authorization.clone());
                }
            }
            for accept in request.accept {
                builder = builder.header(ACCEPT, *accept);
            }
            if request.from > 0 {
                builder = builder.header(RANGE, format!("bytes={}-", request.from));
            }
            let host = authority(&url);
            let response = builder.send().await;
            let response = response.map_err(|error| RegistryError::of_transport(&host, &error))?;
            let status = response.status().as_u16();
            tracing::debug!(status, "GET {}", without_query(&url));
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(GetResponse { response, from_registry: own });
            }
            url = self.target(&url, response.headers())?;
        }
        let why = "too many redirects";
        Err(RegistryError::Redirect { host: self.host(), to: without_query(&url), why })
    }

    /// The target of a redirect, if it may be followed.
    fn target(&self, from: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
        let refuse = |to: String, why| RegistryError::Redirect { host: self.host(), to, why };
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| refuse(String::new(), "no Location header"))?;
        let to = from.join(location).map_err(|_| {
            let shown = location.split('?').next().unwrap_or_default();
            refuse(crate::text::line(shown), "it is not a valid URL")
        })?;
        let same = to.host_str() == from.host_str();
        let plain = to.scheme() == "http" && from.scheme() == "http";
        let why = match to.scheme() {
            "https" => None,
            "http" if plain && (same || to.host_str().is_some_and(is_loopback)) => None,
            "http" => Some("it is plain http"),
            _ => Some("it is neither https nor http"),
        };
        let user = !to.username().is_empty() || to.password().is_some();
        match why.or(user.then_some("it contains a user")) {
            Some(why) => Err(refuse(without_query(&to), why)),
            None => Ok(to),
        }
    }

    /// Sends a request to a token server, without the registry's configured headers. Redirects are
    /// not followed.
    pub(super) async fn token(
        &self,
        realm: &Url,
        build: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
        method: Method,
    ) -> Result<Response, reqwest::Error> {
        let own = realm.origin() == self.base.origin();
        let client = if own { &self.own } else { &self.others };
        let response = build(client.request(method, realm.clone())).send().await?;
        let status = response.status().as_u16();
        tracing::debug!(status, "token server {}", without_query(realm));
        Ok(response)
    }
}

/// A URL for messages, without its query, which may contain a signature.
pub(super) fn without_query(url: &Url) -> String {
    crate::text::line(&format!("{}://{}{}", url.scheme(), authority(url), url.path()))
}

fn client(
    config: rustls::ClientConfig,
    dial: Duration,
    direct: bool,
) -> Result<Client, RegistryError> {
    let builder = Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_only()
        .user_agent(USER_AGENT)
        .connect_timeout(dial)
        .read_timeout(READ_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(20));
    let builder = if direct { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| RegistryError::Tls(error.to_string()))
}
