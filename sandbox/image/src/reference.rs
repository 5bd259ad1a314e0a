//! Image references.
//!
//! The grammar is that of `distribution/reference`; the defaults for omitted parts are Docker's.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use oci_spec::image::Digest;
use sandbox_core::{Classified, Kind};

use crate::digest;

/// The registry of a reference without a host.
pub(crate) const DEFAULT_HOST: &str = "docker.io";
/// The host that serves it.
const DEFAULT_SERVER: &str = "registry-1.docker.io";
/// The maximum length of host and repository together.
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A registry and a repository in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    host: String,
    repository: String,
}

/// A place with a tag, a digest, or both; the digest takes precedence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    place: Place,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is not a valid image reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("image reference {text:?}: {why}")]
pub struct ReferenceError {
    /// The text, truncated.
    pub text: String,
    /// What is wrong and what is expected.
    pub why: &'static str,
}

impl Classified for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Place {
    /// A place with validated parts.
    ///
    /// # Errors
    ///
    /// When the host or the repository is invalid.
    pub fn new(host: &str, repository: &str) -> Result<Self, ReferenceError> {
        let error = |why| invalid(&format!("{host}/{repository}"), why);
        let host = parse_host(host).filter(|it| is_host(it)).ok_or_else(|| error(BAD_HOST))?;
        check_repository(repository).map_err(error)?;
        Ok(Self { host: canonical_host(&host).to_owned(), repository: repository.to_owned() })
    }

    /// The registry with its port, in lower case: `docker.io`, `reg.example:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The host and port that serve the registry.
    pub fn server(&self) -> &str {
        server(&self.host)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)
    }
}

impl Reference {
    /// Host and repository.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The tag; `latest` if the reference has neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The digest, or else the tag, to request from the registry.
    pub fn selector(&self) -> &str {
        let digest = self.digest.as_ref().map(AsRef::as_ref);
        digest.or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |why| invalid(text, why);
        if text.is_empty() {
            return Err(error("it is empty; expected [HOST[:PORT]/]NAME[:TAG][@DIGEST]"));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => (name, Some(digest::parse(digest).map_err(error)?)),
        };
        let (name, tag) = split_tag(name);
        if let Some(tag) = tag {
            check_tag(tag).map_err(error)?;
        }
        let place = parse_name(name).map_err(error)?;
        let tag = match (tag, &digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self { place, tag: tag.map(str::to_owned), digest })
    }
}

const BAD_HOST: &str = "the host is not NAME, NAME:PORT, IPV4[:PORT] or [IPV6][:PORT]";
const BAD_NAME: &str = "the name must be lower-case letters and digits, \
                        joined by '.', '_', '__' or '-' and separated by '/'";

fn invalid(text: &str, why: &'static str) -> ReferenceError {
    ReferenceError { text: text.chars().take(300).collect(), why }
}

/// Maps the aliases of Docker Hub to the host that image names contain.
pub(crate) fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | DEFAULT_SERVER => DEFAULT_HOST,
        other => other,
    }
}

/// The host and port that serve a registry.
pub(crate) fn server(host: &str) -> &str {
    if host == DEFAULT_HOST { DEFAULT_SERVER } else { host }
}

/// Splits off the tag. Only a colon after the last slash, outside brackets, starts a tag; others
/// belong to ports and IPv6 addresses.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !tag.ends_with(']') => (name, Some(tag)),
        _ => (name, None),
    }
}

fn parse_name(name: &str) -> Result<Place, &'static str> {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (parse_host(first).ok_or(BAD_HOST)?, rest),
        _ => (DEFAULT_HOST.to_owned(), name),
    };
    let host = canonical_host(&host).to_owned();
    check_repository(path)?;
    let library = host == DEFAULT_HOST && !path.contains('/');
    if library && path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are an image ID; use the name of the image");
    }
    let repository = if library { format!("library/{path}") } else { path.to_owned() };
    // The limit applies to the full name, with defaults filled in.
    if host.len() + 1 + repository.len() > NAME_LIMIT {
        return Err("host and name are longer than 255 characters");
    }
    Ok(Place { host, repository })
}

/// Whether the first component of a name is a host rather than part of the repository.
///
/// Docker also treats a component with a capital letter as a host; that is not supported, because
/// hosts are converted to lower case.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

/// Normalises a host with an optional port: lower case, IPv6 in brackets and compressed.
pub(crate) fn parse_host(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port = match after.strip_prefix(':') {
            Some(port) => format!(":{}", parse_port(port)?),
            None if after.is_empty() => String::new(),
            None => return None,
        };
        return Some(format!("[{address}]{port}"));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, format!(":{}", parse_port(port)?)),
        None => (text, String::new()),
    };
    let label = |label: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let dash = label.starts_with('-') || label.ends_with('-');
        !label.is_empty() && label.len() <= 63 && !dash && label.bytes().all(fine)
    };
    name.split('.').all(label).then(|| format!("{}{port}", name.to_ascii_lowercase()))
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.len() > NAME_LIMIT {
        return Err("the name is longer than 255 characters");
    }
    if path.split('/').all(is_component) { Ok(()) } else { Err(BAD_NAME) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|b| plain(*b)) && bytes.last().is_some_and(|b| plain(*b));
    let separators = || text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separator = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    ends && separators().all(separator)
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fine = tag.bytes().all(|b| first(b) || b == b'.' || b == b'-');
    let start = tag.bytes().next().is_some_and(first);
    if fine && start && tag.len() <= TAG_LIMIT {
        Ok(())
    } else {
        Err("the tag must be at most 128 letters, digits, '_', '.' and '-', \
             and must not begin with '.' or '-'")
    }
}

#[cfg(test)]
mod tests;
