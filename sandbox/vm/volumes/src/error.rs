//! Why a container cannot run in a guest.

use std::io;
use std::path::PathBuf;

use sandbox_core::{Classified, Kind};

/// Why a container cannot run in a guest.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration is wrong.
    #[error("{place}: {fault}")]
    Invalid {
        /// The field of config.json, or the mount.
        place: String,
        /// What is wrong, and how to fix it.
        fault: String,
    },
    /// A VM cannot do that.
    #[error("{place}: {reason}")]
    Unsupported {
        /// The field of config.json, or the mount.
        place: String,
        /// Why, and an alternative.
        reason: String,
    },
    /// The VM has no slots for more disks.
    #[error("the Pod needs {needed} disks, {driver} takes {room}; {fix}")]
    Disks {
        /// How many the Pod would have.
        needed: usize,
        /// How many a VM can have.
        room: usize,
        /// The driver.
        driver: &'static str,
        /// How to need fewer.
        fix: &'static str,
    },
    /// A path cannot be examined.
    #[error("looking at {path}")]
    Look {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Examining the sources took too long.
    #[error("looking at the volumes took more than {0} s; is a volume's server gone?")]
    Stalled(u64),
}

impl Classified for PlanError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::Disks { .. } => Kind::FailedPrecondition,
            Self::Look { .. } => Kind::Internal,
            Self::Stalled(_) => Kind::DeadlineExceeded,
        }
    }
}

pub(crate) fn invalid(place: impl Into<String>, fault: impl Into<String>) -> PlanError {
    PlanError::Invalid { place: place.into(), fault: fault.into() }
}

pub(crate) fn unsupported(place: impl Into<String>, reason: impl Into<String>) -> PlanError {
    PlanError::Unsupported { place: place.into(), reason: reason.into() }
}
