//! Parsing of `hosts.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::IntoDeserializer as _;
use toml::de::{DeTable, Error};

use crate::reference::Place;
use crate::registry::error::RegistryError;
use crate::registry::host::{
    DIAL_TIMEOUT, RegistryHost, TlsFiles, authority, host_of, is_loopback,
};

/// A `[host."..."]` table, or the top level of the file, which configures `server` with the same
/// keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    skip_verify: bool,
    header: BTreeMap<String, OneOrMore>,
    override_path: bool,
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

/// The parsed file.
struct RawFile {
    server: Option<String>,
    /// In the order of the file, which is the order in which they are tried.
    hosts: Vec<(String, RawHost)>,
    /// The configuration of `server`.
    own: RawHost,
}

impl RawFile {
    fn parse(text: &str) -> Result<Self, Error> {
        let mut table = DeTable::parse(text)?;
        let mut server = None;
        if let Some(value) = table.get_mut().remove("server") {
            server = Some(String::deserialize(value.into_deserializer())?);
        }
        let mut hosts = Vec::new();
        if let Some(value) = table.get_mut().remove("host") {
            let mut found = Vec::new();
            let tables: BTreeMap<toml::Spanned<String>, RawHost> =
                Deserialize::deserialize(value.into_deserializer())?;
            for (name, host) in tables {
                found.push((name.span().start, name.into_inner(), host));
            }
            found.sort_by_key(|(start, ..)| *start);
            hosts.extend(found.into_iter().map(|(_, name, host)| (name, host)));
        }
        let own = RawHost::deserialize(table.into_deserializer())?;
        Ok(Self { server, hosts, own })
    }
}

/// Parses the file at `path` for a place.
pub(super) fn parse(
    path: &Path,
    text: &str,
    place: &Place,
) -> Result<Vec<RegistryHost>, RegistryError> {
    let invalid = |why: String| RegistryError::Hosts { path: path.to_owned(), why };
    // The parser's own error quotes the line, which may hold a credential in a header.
    let syntax = |error: Error| {
        let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or_default());
        let message = error.message().split(" \"").next().unwrap_or_default();
        invalid(format!("line {}: {message}", before.lines().count().max(1)))
    };
    let raw = RawFile::parse(text).map_err(syntax)?;
    let mut hosts = Vec::new();
    for (name, host) in raw.hosts {
        hosts.push(checked(&name, host, path, place).map_err(invalid)?);
    }
    let server = raw.server.filter(|server| !server.is_empty());
    let server = server.unwrap_or_else(|| place.server().to_owned());
    hosts.push(checked(&server, raw.own, path, place).map_err(invalid)?);
    Ok(hosts)
}

fn checked(name: &str, raw: RawHost, path: &Path, place: &Place) -> Result<RegistryHost, String> {
    let default = RegistryHost::of(place).map_err(|error| error.to_string())?;
    let (full, allows_http) = if name.contains("://") {
        (name.to_owned(), false)
    } else {
        let host = host_of(name.split('/').next().unwrap_or_default());
        (format!("https://{name}"), is_loopback(host))
    };
    let shown = name.rsplit('@').next().unwrap_or_default();
    let mut url = Url::parse(&full).map_err(|error| format!("host {shown:?}: {error}"))?;
    let scheme = matches!(url.scheme(), "http" | "https");
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !scheme || !bare || url.fragment().is_some() || url.host_str().is_none() {
        return Err(format!(
            "host {shown:?}: it must be [http[s]://]HOST[:PORT][/PATH] without a user or a query"
        ));
    }
    let base = url.path().trim_end_matches('/').to_owned();
    let base = if raw.override_path || base.ends_with("/v2") { base } else { base + "/v2" };
    url.set_path(&base);
    let resolves = raw.capabilities.is_none_or(|all| all.iter().any(|it| it == "resolve"));
    let mirror = authority(&url) != authority(&default.url);
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
    Ok(RegistryHost {
        url,
        allows_http,
        mirror,
        resolves,
        tls,
        headers: headers(raw.header)?,
        dial_timeout,
        origin: Some(path.to_owned()),
    })
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
        return Err("client: only one certificate is supported".to_owned());
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

/// Converts headers, all marked sensitive since some are credentials.
fn headers(raw: BTreeMap<String, OneOrMore>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in raw {
        let key = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("header {name:?} is not a valid header name"))?;
        for value in values.into_vec() {
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| format!("header {name:?} has an invalid value"))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// Parses a duration such as `3s` or `500ms`.
fn seconds(text: &str) -> Result<Duration, String> {
    let invalid = || format!("dial_timeout {text:?}: expected ms, s or m, such as \"5s\"");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
    let duration = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" if number <= 10 => Duration::from_secs(number * 60),
        _ => return Err(invalid()),
    };
    if duration.is_zero() { Err(invalid()) } else { Ok(duration) }
}
