//! Failed calls.

use std::path::PathBuf;

use tonic::{Code, Status};

/// Why a call to the runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// The endpoint is no unix socket.
    #[error("endpoint {0:?} is not supported: the runtime's socket is unix:///path or /path")]
    Endpoint(String),
    /// Nothing listens on the socket.
    #[error(
        "cannot reach a container runtime at {path}; is it running? (--runtime-endpoint selects another socket)"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The transport's error.
        source: tonic::transport::Error,
    },
    /// A call failed.
    #[error("{verb} {object}: {}", status.message().trim_end())]
    Call {
        /// The call in words: `start container`.
        verb: &'static str,
        /// The call's object.
        object: String,
        /// The runtime's answer.
        status: Box<Status>,
    },
    /// A response lacks a part that CRI requires.
    #[error("the runtime's answer about {object} has no {part}")]
    Answer {
        /// The call's object.
        object: String,
        /// The missing part.
        part: &'static str,
    },
}

impl CriError {
    /// The gRPC code of a failed call.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            Self::Endpoint(_) | Self::Connect { .. } | Self::Answer { .. } => None,
        }
    }

    /// Whether the runtime is unavailable: no connection, or only starting.
    pub(super) fn is_unavailable(&self) -> bool {
        let Self::Call { status, .. } = self else { return false };
        // The transport's own failures carry their cause; the runtime's answers have none.
        let broken = std::error::Error::source(status.as_ref()).is_some();
        let codes = [Code::Unknown, Code::Internal, Code::Cancelled];
        status.code() == Code::Unavailable || (broken && codes.contains(&status.code()))
    }
}
