//! What can go wrong with a machine's monitor.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_core::host::HostError;
use sandbox_core::{Classified, Kind};

/// A fault of a driver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("machine.{field} = {value}: {mend}")]
    Machine { field: &'static str, value: String, mend: &'static str },
    #[error("device id {0:?} must be 1 to 20 letters and digits")]
    DeviceId(String),
    #[error("device {0} is already plugged in")]
    Taken(String),
    #[error("every one of the machine's {0} places for devices is taken")]
    Full(usize),
    #[error("the machine cannot grow to {asked} {unit}: it was made for at most {most}")]
    TooMuch { asked: u64, unit: &'static str, most: u64 },
    #[error("the machine {0}")]
    State(&'static str),
    #[error("{program} {version} is too old; install {oldest} or later")]
    Old { program: &'static str, version: String, oldest: &'static str },
    #[error("{program} ended with status {status}{}", tail(.log))]
    Ended { program: &'static str, status: u32, log: String },
    #[error("{program} did not {step} within {} s", .after.as_secs_f32())]
    Deadline { program: &'static str, step: String, after: Duration },
    #[error("talking to {program}")]
    Io { program: &'static str, source: io::Error },
    #[error("{program} closed the connection during {call}")]
    Closed { program: &'static str, call: String },
    #[error("{program}'s answer to {call} cannot be understood: {reason}")]
    Answer { program: &'static str, call: String, reason: String },
    #[error("{program} refused {call}: {message}")]
    Refused { program: &'static str, call: String, message: String },
    #[error("process {pid} ({program}) did not end within {seconds} s of SIGKILL")]
    StillRunning { program: &'static str, pid: u32, seconds: u64 },
    #[error("{what} is not installed: there is no executable {}; {mend}", .program.display())]
    Missing { what: &'static str, program: PathBuf, mend: &'static str },
    #[error("this host's KVM runs no guest ({0}); {1}")]
    Kvm(String, &'static str),
}

impl DriverError {
    /// The error of a file at `path` that cannot be made.
    pub(crate) fn creating(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { step: "creating", path, source }
    }
}

fn tail(log: &str) -> String {
    match log.trim() {
        "" => String::new(),
        log => format!("; it said: {log}"),
    }
}

impl Classified for DriverError {
    fn kind(&self) -> Kind {
        match self {
            Self::Host(error) => error.kind(),
            Self::Machine { .. } | Self::DeviceId(_) | Self::TooMuch { .. } => {
                Kind::InvalidArgument
            }
            Self::Taken(_) => Kind::AlreadyExists,
            Self::Full(_)
            | Self::State(_)
            | Self::Old { .. }
            | Self::Missing { .. }
            | Self::Kvm(..) => Kind::FailedPrecondition,
            Self::Ended { .. } | Self::Closed { .. } | Self::Io { .. } => Kind::Unavailable,
            Self::Deadline { .. } | Self::StillRunning { .. } => Kind::DeadlineExceeded,
            Self::File { .. } | Self::Answer { .. } | Self::Refused { .. } => Kind::Internal,
        }
    }
}
