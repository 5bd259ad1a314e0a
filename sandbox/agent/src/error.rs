//! Errors as the host receives them: a gRPC code and the text of the whole chain.

use std::fmt::Display;

pub(crate) use sandbox_host::{Error, Kind, Result};

/// The request is invalid.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, message)
}

/// The object that the request names does not exist.
pub(crate) fn missing(message: impl Into<String>) -> Error {
    Error::new(Kind::NotFound, message)
}

/// The current state does not allow the request.
pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::new(Kind::FailedPrecondition, message)
}

/// The guest has failed.
pub(crate) fn internal(message: impl Into<String>) -> Error {
    Error::new(Kind::Internal, message)
}

/// A wait has timed out.
pub(crate) fn late(message: impl Into<String>) -> Error {
    Error::new(Kind::DeadlineExceeded, message)
}

/// Adds what was being done to an error.
pub(crate) trait Doing<T> {
    /// Puts `what` before the cause's text.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| internal(format!("{}: {cause}", what())))
    }
}

/// The status that carries `error` over ttrpc.
pub(crate) fn status(error: &Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        Kind::NotFound => ttrpc::Code::NOT_FOUND,
        Kind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        Kind::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
        Kind::Unavailable => ttrpc::Code::UNAVAILABLE,
        Kind::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
        Kind::PermissionDenied => ttrpc::Code::PERMISSION_DENIED,
        Kind::Internal => ttrpc::Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.to_string()))
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

    #[test]
    fn a_status_keeps_code_and_text() {
        let ttrpc::Error::RpcStatus(status) = status(&missing("no container \"a\"")) else {
            panic!("not a status");
        };
        assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);
        assert_eq!(status.message, "no container \"a\"");
    }
}
