//! One host that serves a registry.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::error::RegistryError;
use crate::reference::{Place, server};

/// Connect timeout unless `dial_timeout` sets another.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// One host that serves a registry.
#[derive(Clone, Debug)]
pub struct RegistryHost {
    /// The base URL of its API without a trailing slash: `https://reg.example/v2`.
    pub url: Url,
    /// Whether plain HTTP is allowed: a loopback host without a configured scheme.
    pub(crate) allows_http: bool,
    /// Whether it is a host other than the one in the image reference.
    pub mirror: bool,
    /// Whether it may resolve tags.
    pub(super) resolves: bool,
    /// Certificates and verification.
    pub(crate) tls: TlsFiles,
    /// Additional headers for this host only.
    pub(super) headers: HeaderMap,
    /// Connect timeout.
    pub(super) dial_timeout: Duration,
    /// The `hosts.toml` that configures it.
    pub origin: Option<PathBuf>,
}

/// The TLS configuration of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Certificate authorities trusted in addition to the system's.
    pub(super) ca: Vec<PathBuf>,
    /// The client's certificate and key; `None` if the key is in the same file.
    pub(super) client: Option<(PathBuf, Option<PathBuf>)>,
    /// Whether to skip verification of the server's certificate.
    pub(crate) skip_verify: bool,
}

impl RegistryHost {
    /// The registry's own host with the default configuration.
    pub(super) fn of(place: &Place) -> Result<Self, RegistryError> {
        let server = server(place.host());
        let url = format!("https://{server}/v2");
        Ok(Self {
            url: Url::parse(&url).map_err(|e| RegistryError::Url { url, why: e.to_string() })?,
            allows_http: is_loopback(host_of(server)),
            mirror: false,
            resolves: true,
            tls: TlsFiles::default(),
            headers: HeaderMap::new(),
            dial_timeout: DIAL_TIMEOUT,
            origin: None,
        })
    }

    /// Changes the scheme to plain HTTP, on the same port.
    pub(super) fn use_http(&mut self) {
        let plain = self.url.as_str().replacen("https:", "http:", 1);
        if let Ok(url) = Url::parse(&plain) {
            // An explicit port: 443 is not the default of http.
            let port = self.url.port_or_known_default();
            self.url = url;
            if self.url.set_port(port).is_err() {
                unreachable!("a URL with a host can have a port");
            }
        }
        self.allows_http = false;
    }

    /// Host and port, for messages.
    pub fn authority(&self) -> String {
        authority(&self.url)
    }
}

/// Host and port of a URL; without the port if it is the scheme's default.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The host of `HOST[:PORT]`; an IPv6 address without brackets.
pub(super) fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether a host name or address is a loopback one.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare.ends_with(".localhost")
        || bare.parse::<Ipv4Addr>().is_ok_and(|it| it.is_loopback())
        || bare.parse::<Ipv6Addr>().is_ok_and(|it| it.is_loopback())
}
