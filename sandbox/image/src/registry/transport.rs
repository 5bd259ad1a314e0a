//! Requests: to the registry's own host with what is for it alone, to others bare.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, Url};

use super::hosts::{RegistryHost, authority, is_loopback};
use super::{RegistryError, tls};

/// How long a host may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a registry may send elsewhere for one thing.
const REDIRECTS: usize = 5;
const USER_AGENT: &str = concat!("bulkhead/", env!("CARGO_PKG_VERSION"));

/// The connections of one registry host.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) base: Url,
    headers: HeaderMap,
    /// With the client's certificate, and without a look at the server's where that is configured.
    own: Client,
    /// For where the registry sends to.
    others: Client,
    /// Whether it is certain who speaks.
    pub(super) verified: bool,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub(super) url: Url,
    pub(super) accept: &'a [&'a str],
    pub(super) from: u64,
    pub(super) authorization: Option<HeaderValue>,
}

/// An answer, and whether the registry itself gave it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) own: bool,
}

impl Transport {
    pub(super) fn new(host: &RegistryHost) -> Result<Self, RegistryError> {
        let base = host.url.clone();
        let local = base.host_str().is_some_and(is_loopback);
        // Only what is encrypted and not for this machine goes through a proxy.
        let direct = local || base.scheme() == "http";
        let own = client(tls::config(&host.tls)?, host.dial_timeout, direct)?;
        let others = client(tls::config_for_others(&host.tls)?, host.dial_timeout, direct)?;
        let verified = base.scheme() == "https" && !host.tls.skip_verify;
        Ok(Self { base, headers: host.headers.clone(), own, others, verified })
    }

    /// The host that messages name.
    pub(super) fn host(&self) -> String {
        authority(&self.base)
    }

    /// Gets a thing from the registry, or from where it sends to.
    pub(super) async fn get(&self, ask: Ask<'_>) -> Result<Answer, RegistryError> {
        let (mut url, mut own) = (ask.url.clone(), true);
        for _ in 0..=REDIRECTS {
            // Once away the credential stays away, even if the way leads back.
            own = own && url.origin() == self.base.origin();
            let client = if own { &self.own } else { &self.others };
            let mut request = client.request(Method::GET, url.clone());
            if own {
                request = request.headers(self.headers.clone());
                if let Some(authorization) = &ask.authorization {
                    request = request.header(AUTHORIZATION, authorization.clone());
                }
            }
            for accept in ask.accept {
                request = request.header(ACCEPT, *accept);
            }
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            let host = authority(&url);
            let response = request.send().await;
            let response = response.map_err(|error| RegistryError::of_transport(&host, &error))?;
            log::debug!("GET {}: {}", shown(&url), response.status().as_u16());
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, own });
            }
            url = self.target(&url, response.headers())?;
        }
        let why = "it sends on and on";
        Err(RegistryError::Redirect { host: self.host(), to: shown(&url), why })
    }

    /// Where a redirect leads, if that may be followed.
    fn target(&self, from: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
        let refuse = |to: String, why| RegistryError::Redirect { host: self.host(), to, why };
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| refuse(String::new(), "it does not say where"))?;
        let to = from.join(location).map_err(|_| {
            refuse(
                crate::text::line(location.split('?').next().unwrap_or_default()),
                "it is no address",
            )
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
        match why.or(user.then_some("it names a user")) {
            Some(why) => Err(refuse(shown(&to), why)),
            None => Ok(to),
        }
    }

    /// Asks a token server. Nothing that is for the registry alone goes along, and no redirect is
    /// followed.
    pub(super) async fn token(
        &self,
        realm: &Url,
        request: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
        method: Method,
    ) -> Result<Response, reqwest::Error> {
        let own = realm.origin() == self.base.origin();
        let client = if own { &self.own } else { &self.others };
        let response = request(client.request(method, realm.clone())).send().await?;
        log::debug!("token server {}: {}", shown(realm), response.status().as_u16());
        Ok(response)
    }
}

/// A URL without its query, which may hold a signature.
pub(super) fn shown(url: &Url) -> String {
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
        .read_timeout(SILENCE)
        .pool_idle_timeout(Duration::from_secs(20));
    let builder = if direct { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| RegistryError::Tls(error.to_string()))
}
