//! `hosts.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::de::DeTable;

use super::{DIAL_TIMEOUT, RegistryHost, TlsFiles};
use crate::reference::Place;
use crate::registry::RegistryError;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, RawHost>,
    // The rest is the server's own; serde cannot flatten and refuse what it does not know.
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Option<OneOrMore>,
    #[serde(default)]
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    dial_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Option<OneOrMore>,
    #[serde(default)]
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    File(String),
    Files(Vec<ClientFiles>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    Both(String),
    Pair(Vec<String>),
}

/// Reads the file at `path` for that place.
pub(super) fn parse(
    path: &Path,
    text: &str,
    place: &Place,
) -> Result<Vec<RegistryHost>, RegistryError> {
    let wrong = |why: String| RegistryError::Hosts { path: path.to_owned(), why };
    // The parser's own error shows the line, and a header there may be a credential.
    let syntax = |error: toml::de::Error| {
        let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or_default());
        let message = error.message().split(" \"").next().unwrap_or_default();
        wrong(format!("line {}: {message}", before.lines().count().max(1)))
    };
    let mut raw: RawFile = toml::from_str(text).map_err(syntax)?;
    let mut hosts = Vec::new();
    for name in order(text).map_err(syntax)? {
        let Some(host) = raw.host.remove(&name) else { continue };
        hosts.push(checked(&name, host, path, place).map_err(wrong)?);
    }
    let own = RawHost {
        capabilities: raw.capabilities,
        ca: raw.ca,
        client: raw.client,
        skip_verify: raw.skip_verify,
        header: raw.header,
        override_path: raw.override_path,
        dial_timeout: raw.dial_timeout,
    };
    let server = raw.server.filter(|server| !server.is_empty());
    let server = server.unwrap_or_else(|| place.server().to_owned());
    hosts.push(checked(&server, own, path, place).map_err(wrong)?);
    Ok(hosts)
}

/// The names of the hosts as they stand in the file: they are asked in that order.
fn order(text: &str) -> Result<Vec<String>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let hosts = table.get_ref().iter().find(|(key, _)| key.get_ref() == "host");
    let Some(hosts) = hosts.and_then(|(_, value)| value.get_ref().as_table()) else {
        return Ok(Vec::new());
    };
    let mut names: Vec<_> =
        hosts.iter().map(|(key, _)| (key.span().start, key.get_ref().to_string())).collect();
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

fn checked(name: &str, raw: RawHost, path: &Path, place: &Place) -> Result<RegistryHost, String> {
    let default = RegistryHost::of(place).map_err(|error| error.to_string())?;
    let (full, may_be_plain) = if name.contains("://") {
        (name.to_owned(), false)
    } else {
        let host = super::host_of(name.split('/').next().unwrap_or_default());
        (format!("https://{name}"), super::is_loopback(host))
    };
    let shown = name.rsplit('@').next().unwrap_or_default();
    let mut url = Url::parse(&full).map_err(|error| format!("host {shown:?}: {error}"))?;
    let scheme = matches!(url.scheme(), "http" | "https");
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !scheme || !bare || url.fragment().is_some() || url.host_str().is_none() {
        let wanted = "it must be [http[s]://]HOST[:PORT][/PATH] without a user or a query";
        return Err(format!("host {shown:?}: {wanted}"));
    }
    let base = url.path().trim_end_matches('/').to_owned();
    let base = if raw.override_path || base.ends_with("/v2") { base } else { base + "/v2" };
    url.set_path(&base);
    let resolves = raw.capabilities.is_none_or(|all| all.iter().any(|it| it == "resolve"));
    let mirror = super::authority(&url) != super::authority(&default.url);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let tls = TlsFiles {
        ca: raw
            .ca
            .map(OneOrMore::into_vec)
            .unwrap_or_default()
            .iter()
            .map(|it| directory.join(it))
            .collect(),
        client: raw.client.map(|client| client_files(client, directory)).transpose()?.flatten(),
        skip_verify: raw.skip_verify,
    };
    let dial_timeout = raw.dial_timeout.as_deref().map_or(Ok(DIAL_TIMEOUT), seconds)?;
    let (headers, origin) = (headers(raw.header)?, Some(path.to_owned()));
    Ok(RegistryHost { url, may_be_plain, mirror, resolves, tls, headers, dial_timeout, origin })
}

fn client_files(
    client: Client,
    directory: &Path,
) -> Result<Option<(PathBuf, Option<PathBuf>)>, String> {
    let mut pairs = match client {
        Client::File(file) => vec![ClientFiles::Both(file)],
        Client::Files(files) => files,
    };
    if pairs.len() > 1 {
        return Err("client: one certificate is supported, not several; keep one".to_owned());
    }
    match pairs.pop() {
        None => Ok(None),
        Some(ClientFiles::Both(file)) => Ok(Some((directory.join(file), None))),
        Some(ClientFiles::Pair(pair)) => match pair.as_slice() {
            [file] => Ok(Some((directory.join(file), None))),
            [file, key] if key.is_empty() => Ok(Some((directory.join(file), None))),
            [file, key] => Ok(Some((directory.join(file), Some(directory.join(key))))),
            _ => Err("client: a pair is [\"certificate\", \"key\"]".to_owned()),
        },
    }
}

/// Headers; none is shown by a `Debug`, since some are credentials.
fn headers(raw: BTreeMap<String, OneOrMore>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in raw {
        let key = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("header {name:?} is not a header's name"))?;
        for value in values.into_vec() {
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| format!("header {name:?} has a value that no header can have"))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// A duration such as `3s` or `500ms`.
fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("dial_timeout {text:?}: give it in ms, s or m, such as \"5s\"");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let duration = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" if number <= 10 => Duration::from_secs(number * 60),
        _ => return Err(wrong()),
    };
    if duration.is_zero() { Err(wrong()) } else { Ok(duration) }
}
