//! Streams that could not be set up.

use std::io;

use sandbox_host::{Classified, HostError, Kind};

/// Streams that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A path could not be opened.
    #[error("opening {stream} {path}")]
    Open {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The path or URI.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A URI with an unknown scheme.
    #[error("{stream} {uri} is not supported: use a fifo's path, file:// or binary://")]
    Scheme {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The URI.
        uri: String,
    },
    /// The logger of a `binary://` URI could not be started.
    #[error("starting the logger {path}")]
    Logger {
        /// The program.
        path: String,
        /// Cause.
        source: HostError,
    },
    /// The logger exited, or did not signal that it is ready in time.
    #[error("the logger {path} did not become ready")]
    LoggerNotReady {
        /// The program.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A pseudo-terminal or its socket failed.
    #[error("{step} the terminal")]
    Terminal {
        /// What failed, as a participle.
        step: &'static str,
        /// Cause.
        source: io::Error,
    },
}

impl Classified for StdioError {
    fn kind(&self) -> Kind {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Scheme { .. } => Kind::InvalidArgument,
            Self::Logger { .. } | Self::LoggerNotReady { .. } => Kind::Unavailable,
            Self::Open { .. } | Self::Terminal { .. } => Kind::Internal,
        }
    }
}
