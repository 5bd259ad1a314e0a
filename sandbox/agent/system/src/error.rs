//! Errors as the host receives them: a kind, and one text of the whole chain.

use std::fmt::Display;

pub(crate) use sandbox_host::{Error, Kind, Result};

/// The request is invalid.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, message)
}

/// The guest has failed.
pub fn internal(message: impl Into<String>) -> Error {
    Error::new(Kind::Internal, message)
}

/// A wait has timed out.
pub fn late(message: impl Into<String>) -> Error {
    Error::new(Kind::DeadlineExceeded, message)
}

/// Adds what was being done to an error.
pub trait Doing<T> {
    /// Puts `what` before the cause's text.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| internal(format!("{}: {cause}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_follows_the_context() {
        let failed: Result<()> =
            Err(std::io::Error::other("no room")).doing(|| "mounting /x".into());
        let error = failed.unwrap_err();
        assert_eq!(error.to_string(), "mounting /x: no room");
        assert_eq!(error.kind(), Kind::Internal);
    }
}
