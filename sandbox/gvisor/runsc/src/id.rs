//! The ids by which runsc knows containers.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Follows a container's id in runsc's: runsc admits it in an id, containerd does not
/// (`pkg/identifiers`).
const TERMINATOR: char = '+';

/// A container's id in runsc's own form; [`fmt::Display`] shows it without its terminator, as the
/// caller of the shim knows it.
///
/// runsc takes an id for an abbreviation (`findContainerID` in `runsc/container/state_file.go`):
/// beside `web10`, `web1` is ambiguous. With a terminator no id is the beginning of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunscId(String);

impl RunscId {
    /// The id of containerd's container `id`.
    pub fn new(id: &str) -> Self {
        Self(format!("{id}{TERMINATOR}"))
    }

    /// The id of containerd's container `id` in the sandbox `self`. A shim of before the
    /// terminator, whose containers may still run, made both without one.
    #[must_use]
    pub fn beside(&self, id: &str) -> Self {
        if self.0.ends_with(TERMINATOR) { Self::new(id) } else { Self(id.to_owned()) }
    }

    /// The id that a shim of before the terminator gave runsc for the same container.
    #[must_use]
    pub fn unterminated(&self) -> Self {
        Self(self.to_string())
    }

    /// The id as runsc wrote it into a file name.
    pub(crate) fn written(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Deref for RunscId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunscId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_suffix(TERMINATOR).unwrap_or(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_begins_another() {
        let (short, long) = (RunscId::new("web1"), RunscId::new("web10"));
        assert!(!long.starts_with(&*short));
        assert_eq!(short.to_string(), "web1");
        assert_eq!(&*short, "web1+");
    }

    #[test]
    fn an_earlier_releases_sandbox_keeps_its_names() {
        let old: RunscId = serde_json::from_str(r#""web1""#).unwrap();
        assert_eq!((old.to_string().as_str(), &*old.beside("c")), ("web1", "c"));
        assert_eq!(&*RunscId::new("web1").beside("c"), "c+");
    }
}
