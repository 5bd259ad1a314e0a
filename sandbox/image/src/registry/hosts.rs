//! Where a registry is spoken to: containerd's `certs.d/HOST/hosts.toml`, read as containerd reads
//! it, so that one configuration serves both.

mod file;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::RegistryError;
use crate::reference::{Place, server};

/// How long a connection may take to come up, unless `dial_timeout` says otherwise.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Directories that hold a folder for each registry.
#[derive(Clone, Debug, Default)]
pub struct HostsDirectories(Vec<PathBuf>);

/// One host that answers for a registry.
#[derive(Clone, Debug)]
pub struct RegistryHost {
    /// Its API, without a slash at the end: `https://reg.example/v2`.
    pub url: Url,
    /// The scheme was not configured and the host is this machine: `http` is fine too.
    pub may_be_plain: bool,
    /// Whether it is another host than the one in the image's reference.
    pub mirror: bool,
    /// Whether it may say what a tag is.
    pub resolves: bool,
    /// What TLS is made of.
    pub tls: TlsFiles,
    /// Headers for this host alone.
    pub headers: HeaderMap,
    /// How long a connection may take to come up.
    pub dial_timeout: Duration,
    /// The file that says so.
    pub origin: Option<PathBuf>,
}

/// Files with certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities besides the system's.
    pub ca: Vec<PathBuf>,
    /// This client's certificate and key; the key may be in the same file.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// The server's certificate is not looked at.
    pub skip_verify: bool,
}

impl HostsDirectories {
    /// These directories, the first that knows a registry decides; containerd's is
    /// `/etc/containerd/certs.d`.
    pub fn new(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(directories.into_iter().collect())
    }

    /// The hosts for a place, in the order in which they are asked.
    ///
    /// # Errors
    ///
    /// When a file says something that cannot be followed.
    pub fn hosts(&self, place: &Place) -> Result<Vec<RegistryHost>, RegistryError> {
        for directory in self.folders(place.host()) {
            let path = directory.join("hosts.toml");
            match std::fs::read_to_string(&path) {
                Ok(text) => return file::parse(&path, &text, place),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if let Some(tls) = certificates(&directory)? {
                        let host = RegistryHost { tls, ..RegistryHost::of(place)? };
                        return Ok(vec![host]);
                    }
                }
                Err(source) => return Err(RegistryError::ReadHosts { path, source }),
            }
        }
        Ok(vec![RegistryHost::of(place)?])
    }

    fn folders(&self, host: &str) -> Vec<PathBuf> {
        let mut names = vec![host.to_owned(), "_default".to_owned()];
        if let Some((name, port)) = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            names.insert(0, format!("{name}_{port}_"));
        }
        let folders = self.0.iter().flat_map(|root| names.iter().map(|name| root.join(name)));
        folders.filter(|folder| folder.is_dir()).collect()
    }
}

impl RegistryHost {
    /// The registry's own host, when nothing is configured.
    fn of(place: &Place) -> Result<Self, RegistryError> {
        let server = server(place.host());
        let local = is_loopback(host_of(server));
        let url = format!("https://{server}/v2");
        Ok(Self {
            url: Url::parse(&url).map_err(|e| RegistryError::Url { url, why: e.to_string() })?,
            may_be_plain: local,
            mirror: false,
            resolves: true,
            tls: TlsFiles::default(),
            headers: HeaderMap::new(),
            dial_timeout: DIAL_TIMEOUT,
            origin: None,
        })
    }

    /// It does not speak TLS, and need not.
    pub(super) fn become_plain(&mut self) {
        let plain = self.url.as_str().replacen("https:", "http:", 1);
        if let Ok(url) = Url::parse(&plain) {
            // 443 is no default of http, so the port stays what it was.
            let port = self.url.port_or_known_default();
            self.url = url;
            if self.url.set_port(port).is_err() {
                unreachable!("a URL with a host has a port");
            }
        }
        self.may_be_plain = false;
    }

    /// Host and port, for messages.
    pub fn authority(&self) -> String {
        authority(&self.url)
    }
}

/// Host and port of a URL, the port only if it is not the scheme's.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The host of `HOST[:PORT]`, IPv6 without its brackets.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether a host name or address is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare.ends_with(".localhost")
        || bare.parse::<Ipv4Addr>().is_ok_and(|it| it.is_loopback())
        || bare.parse::<Ipv6Addr>().is_ok_and(|it| it.is_loopback())
}

/// Docker's layout, which containerd takes where there is no `hosts.toml`: `*.crt`, `*.cert` with
/// `*.key`.
fn certificates(directory: &Path) -> Result<Option<TlsFiles>, RegistryError> {
    let error = |source| RegistryError::ReadHosts { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(error)? {
        paths.push(entry.map_err(error)?.path());
    }
    paths.sort();
    let is = |path: &Path, ending: &str| path.extension().is_some_and(|it| it == ending);
    let mut tls = TlsFiles::default();
    for path in paths {
        if is(&path, "crt") {
            tls.ca.push(path);
        } else if is(&path, "cert") && tls.client.is_none() {
            tls.client = Some((path.clone(), Some(path.with_extension("key"))));
        }
    }
    Ok((tls != TlsFiles::default()).then_some(tls))
}

#[cfg(test)]
mod tests;
