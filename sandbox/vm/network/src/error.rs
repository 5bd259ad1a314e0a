//! Errors of joining a Pod's network, undoing that and forwarding to it.

use std::io;
use std::path::PathBuf;

use sandbox_host::{Classified, Kind};
use sandbox_netns::NetnsError;

/// An error of a Pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The Pod has no network namespace of its own.
    #[error(
        "a Pod in a virtual machine cannot use the host's network: remove `hostNetwork: true` \
         from the Pod, or use a runtime class without a virtual machine"
    )]
    HostNetwork,
    /// The namespace cannot be entered.
    #[error("entering network namespace {path}")]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in the namespace cannot be read.
    #[error("reading the {what} of the Pod's network")]
    Read {
        /// `interfaces`, `addresses`, `routes` or `neighbours`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An interface carries no Ethernet frames.
    #[error(
        "interface {name} ({kind}) of the Pod is not an Ethernet interface, the only kind that a \
         virtual machine can have: use a network plugin that makes veth, macvlan, ipvlan or \
         netkit interfaces"
    )]
    NotEthernet {
        /// The interface.
        name: String,
        /// Its kind, as `ip -details link` shows it.
        kind: String,
    },
    /// The kernel lacks a part.
    #[error("the host's kernel lacks {part}, which needs {fix}")]
    Kernel {
        /// What it lacks.
        part: &'static str,
        /// What provides it.
        fix: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// A change to an interface was refused.
    #[error("{verb} {name}")]
    Link {
        /// The failed step.
        verb: &'static str,
        /// The interface.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A program was refused.
    #[error("loading the BPF program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Port forwarding could not be set up.
    #[error(transparent)]
    Forward(NetnsError),
}

impl From<NetnsError> for NetworkError {
    fn from(error: NetnsError) -> Self {
        match error {
            NetnsError::Own => Self::HostNetwork,
            NetnsError::Enter { path, source } => Self::Enter { path, source },
            NetnsError::Kernel { part, fix, source } => Self::Kernel { part, fix, source },
            NetnsError::Forward { .. } => Self::Forward(error),
        }
    }
}

impl Classified for NetworkError {
    fn kind(&self) -> Kind {
        match self {
            Self::HostNetwork => Kind::InvalidArgument,
            Self::Enter { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Kind::InvalidArgument
            }
            Self::NotEthernet { .. } => Kind::Unimplemented,
            Self::Kernel { .. } => Kind::FailedPrecondition,
            Self::Forward(error) => error.kind(),
            Self::Enter { source, .. }
            | Self::Read { source, .. }
            | Self::Link { source, .. }
            | Self::Program { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                io::ErrorKind::TimedOut => Kind::DeadlineExceeded,
                _ => Kind::Internal,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_code() {
        let errno = io::Error::from_raw_os_error;
        assert_eq!(NetworkError::HostNetwork.kind(), Kind::InvalidArgument);
        let enter = |code| NetworkError::Enter { path: "/n".into(), source: errno(code) };
        assert_eq!(enter(libc::ENOENT).kind(), Kind::InvalidArgument);
        assert_eq!(enter(libc::EPERM).kind(), Kind::PermissionDenied);
        let kernel = NetworkError::Kernel { part: "p", fix: "m", source: errno(libc::ENOENT) };
        assert_eq!(kernel.kind(), Kind::FailedPrecondition);
        let read = NetworkError::Read { what: "routes", source: io::ErrorKind::TimedOut.into() };
        assert_eq!(read.kind(), Kind::DeadlineExceeded);
    }
}
