//! A process named so that it can be found again: by id and start time.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process id with the start time that tells its process from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
    pub start_time: u64,
}

impl ProcessMark {
    /// Marks a living process; `None` if there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = after_name(&stat)?.split_ascii_whitespace().collect();
        // Field 3, the state, is the first one after the name.
        let dead = matches!(*fields.first()?, "Z" | "X");
        let start_time = fields.get(19)?.parse().ok()?;
        (!dead).then_some(Self { pid, start_time })
    }

    /// Whether the marked process still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends SIGKILL if it is still the marked process; tells whether it was.
    pub fn kill(&self) -> bool {
        self.alive() && kill(raw(self.pid), Signal::SIGKILL).is_ok()
    }
}

/// A process id as the kernel's calls take it.
pub(super) fn raw(pid: u32) -> Pid {
    // Linux's process ids end at 2^22; a larger number names no process, as i32::MAX does not.
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// What follows the command name, which may itself hold spaces and parentheses.
fn after_name(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ").map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself_and_nobody_else() {
        let own = ProcessMark::of(std::process::id()).unwrap();
        assert!(own.alive());
        let other = ProcessMark { start_time: own.start_time + 1, ..own };
        assert!(!other.alive());
        assert!(!other.kill());
        assert_eq!(ProcessMark::of(u32::MAX), None);
    }

    #[test]
    fn a_name_may_hold_parentheses() {
        assert_eq!(after_name("7 (a) b) (c) S 1 2"), Some("S 1 2"));
    }
}
