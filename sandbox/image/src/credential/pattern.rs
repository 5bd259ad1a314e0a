//! Which registries and repositories a credential is for: the kubelet's matching rules.
//!
//! A key such as `https://*.reg.example:5000/team` matches an image when the ports are equal, the
//! hosts have the same number of labels and each label matches (`*`, `?` and `[a-z]` do not cross a
//! dot), and the image's repository begins with the path.

use std::fmt;

use sandbox_core::{Classified, Kind};

use crate::reference::{Place, canonical_host, parse_host};

/// The registries and repositories that a credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The host without its port; may contain globs.
    host: String,
    port: Option<String>,
    /// Empty, or starting with a slash.
    path: String,
}

/// A key is not a valid pattern.
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

/// What a credential is wanted for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// One repository.
    Place(&'a Place),
    /// Any repository of the registry with this host.
    Host(&'a str),
}

impl Wanted<'_> {
    /// The registry's host, in the form of [`Place::host`].
    pub fn host(&self) -> &str {
        match self {
            Self::Place(place) => place.host(),
            Self::Host(host) => host,
        }
    }
}

impl Pattern {
    /// Parses a key of a Docker configuration.
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
        // Docker Hub is stored under the URL of its v1 API.
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

    /// A pattern for all repositories of a registry.
    pub fn of_host(place: &Place) -> Self {
        let (host, port) = split_port(place.host()).unwrap_or((place.host(), None));
        Self { host: host.to_owned(), port: port.map(str::to_owned), path: String::new() }
    }

    pub(super) fn is_for(&self, wanted: Wanted<'_>) -> bool {
        match wanted {
            Wanted::Place(place) => {
                let path = self.path.strip_prefix('/').unwrap_or(&self.path);
                self.matches_host(place.host()) && place.repository().starts_with(path)
            }
            Wanted::Host(host) => self.matches_host(host),
        }
    }

    fn matches_host(&self, host: &str) -> bool {
        let Some((name, port)) = split_port(host) else { return false };
        if self.port.as_deref() != port {
            return false;
        }
        if name.starts_with('[') || self.host.contains(':') {
            return self.host == name;
        }
        let globs = self.host.split('.');
        let labels = name.split('.');
        globs.clone().count() == labels.clone().count()
            && globs.zip(labels).all(|(glob, label)| matches(glob.as_bytes(), label.as_bytes()))
    }

    /// Sort key, the most specific first: literal hosts before globs, long paths before short ones.
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

/// Splits an authority, whose host may contain globs, into host and port.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    // Brackets with a colon inside enclose an IPv6 address; others are part of a glob.
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

/// Go's `path.Match` for one label of a host. Backtracks to the last star only, so its time is
/// bounded by the product of the lengths.
fn matches(mut glob: &[u8], mut label: &[u8]) -> bool {
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = glob {
            star = Some((rest, label));
            glob = rest;
        } else if let Some((rest, after)) = step(glob, label) {
            glob = rest;
            label = after;
        } else if glob.is_empty() && label.is_empty() {
            return true;
        } else if let Some((rest, [_, after @ ..])) = star {
            star = Some((rest, after));
            glob = rest;
            label = after;
        } else {
            return false;
        }
    }
}

/// Matches one byte of the label; returns the rest of the glob and of the label.
fn step<'a, 'b>(glob: &'a [u8], label: &'b [u8]) -> Option<(&'a [u8], &'b [u8])> {
    let (byte, after) = label.split_first()?;
    let rest = match glob {
        [b'?', rest @ ..] => Some(rest),
        [b'[', class @ ..] => in_class(class, *byte),
        [b'\\', it, rest @ ..] | [it, rest @ ..] if it == byte => Some(rest),
        _ => None,
    };
    rest.map(|rest| (rest, after))
}

/// Matches `byte` against a character class; returns the rest of the glob after the class.
fn in_class(class: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut rest) = match class.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, class),
    };
    let mut found = false;
    let mut first = true;
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
    fn matches_as_the_kubelet_does() {
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
    fn does_not_match() {
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
    fn many_stars_do_not_backtrack_exponentially() {
        let glob = "*a".repeat(200) + "c";
        let label = "a".repeat(2000) + "b";
        assert!(!matches(glob.as_bytes(), label.as_bytes()));
        assert!(matches(br"a\*b", b"a*b"));
        assert!(!matches(br"a\*b", b"axb"));
        assert!(!matches(b"a\\", b"a"));
    }

    #[test]
    fn more_specific_patterns_rank_first() {
        let order =
            ["reg.example/a/b", "reg.example/a", "reg.example", "*.example/a", "*.example", "*.*"];
        let ranks: Vec<_> = order.iter().map(|it| Pattern::parse(it).unwrap().rank()).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
    }

    #[test]
    fn invalid_keys() {
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
