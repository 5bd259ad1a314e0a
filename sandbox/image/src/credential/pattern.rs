//! For which places a credential is: the rules of the kubelet.
//!
//! A key such as `https://*.reg.example:5000/team` fits an image when the ports are equal, the
//! hosts have equally many parts and each fits (`*`, `?` and `[a-z]` do not cross a dot), and the
//! image's repository begins with the path.

use std::fmt;

use sandbox_core::{Classified, Kind};

use super::Wanted;
use crate::reference::{Place, canonical_host, parse_host};

/// The places that a credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The host without its port; may hold globs.
    host: String,
    port: Option<String>,
    /// Empty, or with a slash at its start.
    path: String,
}

/// Why a key names no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not [https://]HOST[:PORT][/PATH]")]
pub struct PatternError {
    text: String,
}

impl Classified for PatternError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Pattern {
    /// Reads a key of a Docker configuration.
    ///
    /// # Errors
    ///
    /// When it names no host.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let error = || PatternError { text: text.chars().take(300).collect() };
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let bare = bare.unwrap_or(text);
        let (authority, path) = match bare.find('/') {
            Some(at) => bare.split_at(at),
            None => (bare, ""),
        };
        // Docker's own registry is stored under the address of its first API.
        let path = match path.get(..3) {
            Some("/v1" | "/v2") if path.len() == 3 || path[3..].starts_with('/') => &path[3..],
            _ => path,
        };
        let path = if path == "/" { "" } else { path };
        let (host, port) = split_port(authority).ok_or_else(error)?;
        if path.contains(['?', '#', ' ']) {
            return Err(error());
        }
        let host = host.to_ascii_lowercase();
        let host = if port.is_none() { canonical_host(&host).to_owned() } else { host };
        Ok(Self { host, port: port.map(str::to_owned), path: path.to_owned() })
    }

    /// All repositories of one registry.
    pub fn of_host(place: &Place) -> Self {
        let (host, port) = split_port(place.host()).unwrap_or((place.host(), None));
        Self { host: host.to_owned(), port: port.map(str::to_owned), path: String::new() }
    }

    pub(super) fn is_for(&self, wanted: Wanted<'_>) -> bool {
        match wanted {
            Wanted::Place(place) => {
                let path = self.path.strip_prefix('/').unwrap_or(&self.path);
                self.fits_host(place.host()) && place.repository().starts_with(path)
            }
            Wanted::Host(host) => self.fits_host(host),
        }
    }

    fn fits_host(&self, host: &str) -> bool {
        let Some((name, port)) = split_port(host) else { return false };
        if self.port.as_deref() != port {
            return false;
        }
        if name.starts_with('[') || self.host.contains(':') {
            return self.host == name;
        }
        let (globs, parts) = (self.host.split('.'), name.split('.'));
        globs.clone().count() == parts.clone().count()
            && globs.zip(parts).all(|(glob, part)| fits(glob.as_bytes(), part.as_bytes()))
    }

    /// Smaller is more specific: hosts that are spelled out before globs, long paths before short.
    pub(super) fn rank(&self) -> (usize, std::cmp::Reverse<usize>) {
        let globs = if self.host.contains(':') {
            0
        } else {
            self.host.split('.').filter(|part| part.contains(['*', '?', '[', '\\'])).count()
        };
        (globs, std::cmp::Reverse(self.path.len()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(port) = &self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

/// Host and port of an authority whose host may hold globs.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    // Only an IPv6 address has a colon within its brackets; other brackets are a glob's.
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    if bracketed.is_some_and(|(inside, _)| inside.contains(':')) {
        parse_host(authority)?;
        let end = authority.find(']')? + 1;
        return Some((&authority[..end], authority[end..].strip_prefix(':')));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._*?[]^\\".contains(&b);
    let number = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    (!host.is_empty() && host.bytes().all(fine) && number).then_some((host, port))
}

/// Go's `path.Match` for one part of a host; goes back to the last star only, so its time is
/// bounded by the product of the lengths.
fn fits(glob: &[u8], part: &[u8]) -> bool {
    let (mut glob, mut part) = (glob, part);
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = glob {
            star = Some((rest, part));
            glob = rest;
        } else if let Some((rest, after)) = step(glob, part) {
            (glob, part) = (rest, after);
        } else if glob.is_empty() && part.is_empty() {
            return true;
        } else if let Some((rest, [_, after @ ..])) = star {
            star = Some((rest, after));
            (glob, part) = (rest, after);
        } else {
            return false;
        }
    }
}

/// Takes one byte and what it fits.
fn step<'a, 'b>(glob: &'a [u8], part: &'b [u8]) -> Option<(&'a [u8], &'b [u8])> {
    let (byte, after) = part.split_first()?;
    let rest = match glob {
        [b'?', rest @ ..] => Some(rest),
        [b'[', class @ ..] => in_class(class, *byte),
        [b'\\', it, rest @ ..] | [it, rest @ ..] if it == byte => Some(rest),
        _ => None,
    };
    rest.map(|rest| (rest, after))
}

/// What follows the class, if the class is whole and the byte is in it.
fn in_class(class: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut rest) = match class.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, class),
    };
    let (mut found, mut first) = (false, true);
    loop {
        match rest {
            [b']', after @ ..] if !first => return (found != negated).then_some(after),
            [low, b'-', high, after @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                rest = after;
            }
            [one, after @ ..] => {
                found |= *one == byte;
                rest = after;
            }
            [] => return None,
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Reference;

    fn is_for(pattern: &str, image: &str) -> bool {
        let reference: Reference = image.parse().unwrap();
        Pattern::parse(pattern).unwrap().is_for(Wanted::Place(reference.place()))
    }

    #[test]
    fn what_the_kubelet_matches() {
        for (pattern, image) in [
            ("reg.example", "reg.example/a"),
            ("https://reg.example", "reg.example/a"),
            ("http://reg.example/", "reg.example/a"),
            ("REG.example", "reg.example/a"),
            ("reg.example:5000", "reg.example:5000/a"),
            ("https://reg.example/v1/", "reg.example/a"),
            ("https://reg.example/v2/", "reg.example/a"),
            ("https://reg.example/v2", "reg.example/a"),
            ("https://reg.example/v2/team", "reg.example/team/a"),
            ("reg.example/team", "reg.example/team/a"),
            ("reg.example/team", "reg.example/team-b/a"),
            ("reg.example/team/a", "reg.example/team/a:1"),
            ("*.example", "reg.example/a"),
            ("*.*.example", "a.b.example/c"),
            ("r?g.example", "reg.example/a"),
            ("r[a-f]g.example", "reg.example/a"),
            ("r[^x]*.example:5000", "region.example:5000/a"),
            ("docker.io", "busybox"),
            ("index.docker.io", "busybox"),
            ("https://index.docker.io/v1/", "busybox"),
            ("https://index.docker.io/v1/", "team/app"),
            ("registry-1.docker.io", "team/app"),
            ("docker.io/team", "team/app"),
            ("[::1]:5000", "[::1]:5000/a"),
            ("[::1]", "[::1]/a"),
            ("10.0.0.*", "10.0.0.7/a"),
            ("localhost", "localhost/a"),
            ("*a*b*.example", "xaybz.example/a"),
            ("[q-s]eg.example:5000", "reg.example:5000/a"),
        ] {
            assert!(is_for(pattern, image), "{pattern} is for {image}");
        }
    }

    #[test]
    fn what_it_does_not() {
        for (pattern, image) in [
            ("reg.example", "reg.example:5000/a"),
            ("reg.example:5000", "reg.example/a"),
            ("reg.example:5000", "reg.example:5001/a"),
            ("reg.example", "x.reg.example/a"),
            ("reg.example", "reg.example.evil/a"),
            ("reg.example", "xreg.example/a"),
            ("*.example", "a.b.example/c"),
            ("*.example", "example/c"),
            ("*", "a.b/c"),
            ("reg.example/team", "reg.example/other/team"),
            ("docker.io", "evil.io/docker.io/a"),
            ("docker.io", "xdocker.io/a"),
            ("docker.io/team", "busybox"),
            ("[::1]:5000", "[::1]:5001/a"),
            ("[::1]", "[::2]/a"),
            ("*", "[::1]/a"),
            ("r[a-f]g.example", "rzg.example/a"),
            ("r[a-f.example", "ra.example/a"),
        ] {
            assert!(!is_for(pattern, image), "{pattern} is not for {image}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let (glob, part) = ("*a".repeat(200) + "c", "a".repeat(2000) + "b");
        assert!(!fits(glob.as_bytes(), part.as_bytes()));
        assert!(fits(br"a\*b", b"a*b") && !fits(br"a\*b", b"axb") && !fits(b"a\\", b"a"));
    }

    #[test]
    fn the_more_specific_is_first() {
        let order =
            ["reg.example/a/b", "reg.example/a", "reg.example", "*.example/a", "*.example", "*.*"];
        let ranks: Vec<_> = order.iter().map(|it| Pattern::parse(it).unwrap().rank()).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
    }

    #[test]
    fn keys_that_name_no_place() {
        for key in [
            "",
            "https://",
            "/a",
            "user:pw@reg.example",
            "reg.example:x",
            "reg.example:0",
            "[::1",
            "ftp://reg.example",
            "a b",
            "reg.example/a?b",
            "ex\u{e4}mple",
        ] {
            assert!(Pattern::parse(key).is_err(), "{key}");
        }
        assert_eq!(Pattern::parse("https://index.docker.io/v1/").unwrap().to_string(), "docker.io");
        assert_eq!(Pattern::parse("*.x:5000/a").unwrap().to_string(), "*.x:5000/a");
    }
}
