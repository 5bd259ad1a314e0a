//! Errors at a backend's boundary: each module has its own enum, and every enum maps to gRPC codes.

use std::fmt;

/// The gRPC status code that an error reaches containerd with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong; the same request will always fail.
    InvalidArgument,
    /// The container, exec or process does not exist (any more).
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// The state of the object does not allow the operation.
    FailedPrecondition,
    /// The backend does not support the operation.
    Unimplemented,
    /// Something it depends on is missing (runtime binary, sandbox process); a retry may help.
    Unavailable,
    /// A deadline was exceeded.
    DeadlineExceeded,
    /// The host denied it (permissions, capabilities).
    PermissionDenied,
    /// Everything else.
    Internal,
}

/// An error that knows its [`Kind`].
pub trait Classified: std::error::Error + Send + Sync + 'static {
    /// The code to return to the caller.
    fn kind(&self) -> Kind;
}

/// Any classified error, as the traits of a backend return it.
///
/// It does not implement [`std::error::Error`] itself, so that `?` converts every
/// [`Classified`] error into it.
pub struct Error(Box<dyn Classified>);

/// A result with a classified error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The code to return to the caller.
    pub fn kind(&self) -> Kind {
        self.0.kind()
    }

    /// An error with only a message, for faults found at the boundary itself.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Plain { kind, message: message.into() }))
    }
}

impl<E: Classified> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

/// The error and its sources, outermost first, joined by `: `.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.kind())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Plain {
    kind: Kind,
    message: String,
}

impl Classified for Plain {
    fn kind(&self) -> Kind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading /x")]
    struct Outer(#[source] std::io::Error);

    impl Classified for Outer {
        fn kind(&self) -> Kind {
            Kind::NotFound
        }
    }

    #[test]
    fn prints_the_chain_once() {
        let error = Error::from(Outer(std::io::Error::other("gone")));
        assert_eq!(error.to_string(), "reading /x: gone");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(format!("{error:?}"), "NotFound(reading /x: gone)");
    }
}
