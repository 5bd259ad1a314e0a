//! How a process exited.

use std::time::SystemTime;

/// A process's exit: its status as a shell would show it and when it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal's number.
    pub status: u32,
    /// When the exit was observed.
    pub at: SystemTime,
}

impl Exit {
    /// What a SIGKILL leaves: 137.
    pub const KILLED: u32 = 128 + 9;

    /// An exit with `status`, seen now.
    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }

    /// The exit that a `wait(2)` status word describes (Linux's layout, which gVisor's sentry
    /// uses for its guests as well), seen now.
    pub fn from_wait_status(word: i32) -> Self {
        let signal = word & 0x7f;
        let status = if signal == 0 { (word >> 8) & 0xff } else { 128 + signal };
        Self::now(status.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wait_status_words() {
        for (word, status) in [(0, 0), (7 << 8, 7), (9, 137), (15, 143), (0x8b, 139)] {
            assert_eq!(Exit::from_wait_status(word).status, status, "{word:#x}");
        }
    }
}
