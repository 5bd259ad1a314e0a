//! Image references: what people write, and what it means.
//!
//! The grammar is that of `distribution/reference`, the rules for what is left out are Docker's.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use oci_spec::image::Digest;
use sandbox_core::{Classified, Kind};

use crate::digest;

/// The host that a reference without one means.
pub const DEFAULT_HOST: &str = "docker.io";
/// Where that registry is spoken to.
const DEFAULT_SERVER: &str = "registry-1.docker.io";
/// The longest host and repository together.
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A registry and a repository in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    host: String,
    repository: String,
}

/// A place with a tag, a digest, or both; the digest decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    place: Place,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("image reference {text:?}: {why}")]
pub struct ReferenceError {
    /// The text, cut to what a message can hold.
    pub text: String,
    /// What is wrong and how it is mended.
    pub why: &'static str,
}

impl Classified for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Place {
    /// A place of checked parts.
    ///
    /// # Errors
    ///
    /// When the host or the repository is none.
    pub fn new(host: &str, repository: &str) -> Result<Self, ReferenceError> {
        let error = |why| refuse(&format!("{host}/{repository}"), why);
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

    /// The host and port that answer for the registry.
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

    /// The tag; `latest` where neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest, else the tag.
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
        let error = |why| refuse(text, why);
        if text.is_empty() {
            return Err(error("it is empty; give [HOST[:PORT]/]NAME[:TAG][@DIGEST]"));
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
                        joined by '.', '_', '__' or '-' and parted by '/'";

fn refuse(text: &str, why: &'static str) -> ReferenceError {
    ReferenceError { text: text.chars().take(300).collect(), why }
}

/// One registry has several names; this is the one that images carry.
pub(crate) fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | DEFAULT_SERVER => DEFAULT_HOST,
        other => other,
    }
}

/// The host and port that answer for a registry.
pub fn server(host: &str) -> &str {
    if host == DEFAULT_HOST { DEFAULT_SERVER } else { host }
}

/// A tag's colon comes after the last slash; the others are ports and IPv6.
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
        return Err("64 hexadecimal digits are an image's id; give its name");
    }
    let repository = if library { format!("library/{path}") } else { path.to_owned() };
    // With what was filled in: so must it fit where it is written out.
    if host.len() + 1 + repository.len() > NAME_LIMIT {
        return Err("host and name are longer than 255 characters");
    }
    Ok(Place { host, repository })
}

/// Whether the first part of a name is a host, and not the first part of a repository.
///
/// Docker also takes `Reg` for a host, by its capital; in lower case it would be another one.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

/// A host with its port in its one spelling: in lower case, IPv6 in brackets and compressed.
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
             and begin with none of the last two")
    }
}

#[cfg(test)]
mod tests;
