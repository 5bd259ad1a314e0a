//! Identifiers of namespaces, containers and execs.

use std::fmt;

use sandbox_host::{Classified, Kind};
use serde::{Deserialize, Serialize};

/// containerd's own limit for an identifier (`pkg/identifiers`).
const MAX_LEN: usize = 76;

/// A container's, exec's or namespace's id, safe as a path component and as an argument: letters and digits, with single `.`, `_` or `-` between them, at most 76 bytes (the
/// rule of containerd's `identifiers` package).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The empty string.
    #[error("an id is empty")]
    Empty,
    /// Longer than containerd allows, 76 bytes.
    #[error("id {0:?}... has {1} bytes; at most {MAX_LEN} are allowed")]
    TooLong(String, usize),
    /// A character that is not allowed, or a separator that does not stand between two words.
    #[error(
        "id {0:?} is not allowed: use letters and digits with single '.', '_' or '-' between them"
    )]
    Form(String),
}

impl Classified for IdError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Id {
    /// Validates `text`.
    ///
    /// # Errors
    ///
    /// [`IdError`] names the violated rule.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_LEN {
            let start = text.chars().take(16).collect();
            return Err(IdError::TooLong(start, text.len()));
        }
        let words_ok = text
            .split(['.', '_', '-'])
            .all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric()));
        if words_ok { Ok(Self(text)) } else { Err(IdError::Form(text)) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for Id {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_containerd_makes() {
        for good in ["a", "k8s.io", "0d1f", "my-detach-1", "a_b.c-d", &"f".repeat(64)] {
            assert_eq!(Id::new(good).map(|id| id.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn refuses_what_would_leave_its_directory() {
        for bad in ["../x", "a/b", "a\0b", "-a", "a-", "a..b", ".", "a b", "ä", "a\n"] {
            assert_eq!(Id::new(bad), Err(IdError::Form(bad.to_owned())), "{bad:?}");
        }
        assert_eq!(Id::new(""), Err(IdError::Empty));
        let long = Id::new("x".repeat(300)).unwrap_err().to_string();
        assert_eq!(long, "id \"xxxxxxxxxxxxxxxx\"... has 300 bytes; at most 76 are allowed");
    }
}
