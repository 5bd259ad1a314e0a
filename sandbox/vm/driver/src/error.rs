//! Errors of the drivers.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_host::{Classified, HostError, Kind};

/// An error of a driver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("vm.{field} = {value}: {fix}")]
    Plan { field: &'static str, value: String, fix: &'static str },
    #[error("device id {0:?} must be 1 to 20 letters and digits")]
    DeviceId(String),
    #[error("device {0} is already plugged in")]
    Taken(String),
    #[error("all {0} device slots of the VM are in use")]
    Full(usize),
    #[error("the VM cannot grow to {asked} {unit}: its maximum is {most}")]
    TooMuch { asked: u64, unit: &'static str, most: u64 },
    #[error("the VM {0}")]
    State(&'static str),
    #[error("{program} {version} is too old; install {oldest} or later")]
    Old { program: &'static str, version: String, oldest: &'static str },
    #[error("{program} exited with status {status}{}", tail(.log))]
    Exited { program: &'static str, status: u32, log: String },
    #[error("{program} did not {step} within {} s", .after.as_secs_f32())]
    Deadline { program: &'static str, step: String, after: Duration },
    #[error("communicating with {program}")]
    Io { program: &'static str, source: io::Error },
    #[error("{program} closed the connection during {call}")]
    Closed { program: &'static str, call: String },
    #[error("{program}'s answer to {call} is invalid: {reason}")]
    Answer { program: &'static str, call: String, reason: String },
    #[error("{program} refused {call}: {message}")]
    Refused { program: &'static str, call: String, message: String },
    #[error("process {pid} ({program}) did not exit within {seconds} s of SIGKILL")]
    StillRunning { program: &'static str, pid: u32, seconds: u64 },
    #[error("{what} is not installed: there is no executable {}; {fix}", .program.display())]
    Missing { what: &'static str, program: PathBuf, fix: &'static str },
    #[error("this host's KVM runs no guest ({0}); {1}")]
    Kvm(String, &'static str),
}

impl DriverError {
    /// The error of a file at `path` that cannot be created.
    pub(crate) fn creating(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { step: "creating", path, source }
    }
}

fn tail(log: &str) -> String {
    match log.trim() {
        "" => String::new(),
        log => format!("; its log: {log}"),
    }
}

impl Classified for DriverError {
    fn kind(&self) -> Kind {
        match self {
            Self::Host(error) => error.kind(),
            Self::Plan { .. } | Self::DeviceId(_) | Self::TooMuch { .. } => Kind::InvalidArgument,
            Self::Taken(_) => Kind::AlreadyExists,
            Self::Full(_)
            | Self::State(_)
            | Self::Old { .. }
            | Self::Missing { .. }
            | Self::Kvm(..) => Kind::FailedPrecondition,
            Self::Exited { .. } | Self::Closed { .. } | Self::Io { .. } => Kind::Unavailable,
            Self::Deadline { .. } | Self::StillRunning { .. } => Kind::DeadlineExceeded,
            Self::File { .. } | Self::Answer { .. } | Self::Refused { .. } => Kind::Internal,
        }
    }
}
