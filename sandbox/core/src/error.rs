//! Errors at a backend's border: each module has its own enum, and every enum says which gRPC
//! code its caller gets.

use std::fmt;

/// The gRPC status code that an error reaches containerd with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong; the same request will always fail.
    InvalidArgument,
    /// The container, exec or process is not there (any more).
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The object is in a state that does not allow the verb.
    FailedPrecondition,
    /// The backend cannot do this at all.
    Unimplemented,
    /// A part that should be there is not (runtime binary, sandbox process); a retry may help.
    Unavailable,
    /// A bounded wait ran out.
    DeadlineExceeded,
    /// The host refused (permissions, capabilities).
    PermissionDenied,
    /// Everything else.
    Internal,
}

/// An error that knows its [`Kind`].
pub trait Classified: std::error::Error + Send + Sync + 'static {
    /// The code the caller gets.
    fn kind(&self) -> Kind;
}

/// Any classified error, as it crosses a trait's border.
///
/// It does not implement [`std::error::Error`] itself, so that `?` converts every
/// [`Classified`] error into it.
pub struct Error(Box<dyn Classified>);

/// A result with a classified error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The code the caller gets.
    pub fn kind(&self) -> Kind {
        self.0.kind()
    }

    /// An error of `kind` with a plain message, for faults found at the border itself.
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
