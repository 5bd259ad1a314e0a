//! Errors as the host receives them: a gRPC code and the text of the whole chain.

pub(crate) use agent_system::{Doing, internal, invalid, late};
pub(crate) use sandbox_host::{Error, Kind, Result};

/// The object that the request names does not exist.
pub(crate) fn missing(message: impl Into<String>) -> Error {
    Error::new(Kind::NotFound, message)
}

/// The current state does not allow the request.
pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::new(Kind::FailedPrecondition, message)
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
    fn a_status_keeps_code_and_text() {
        let ttrpc::Error::RpcStatus(status) = status(&missing("no container \"a\"")) else {
            panic!("not a status");
        };
        assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);
        assert_eq!(status.message, "no container \"a\"");
    }
}
