//! A reference to a process that survives reuse of its id.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process, by id and start time: a later process with the same id is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
    pub start_time: u64,
}

impl ProcessRef {
    /// The process with this id; `None` if there is none or it is a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = after_name(&stat)?.split_ascii_whitespace().collect();
        // Field 3, the state, is the first one after the name.
        let dead = matches!(*fields.first()?, "Z" | "X");
        let start_time = fields.get(19)?.parse().ok()?;
        (!dead).then_some(Self { pid, start_time })
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends SIGKILL if it still runs, and returns whether it did.
    pub fn kill(&self) -> bool {
        self.alive() && kill(raw(self.pid), Signal::SIGKILL).is_ok()
    }
}

/// A process id as the kernel's calls take it.
pub(crate) fn raw(pid: u32) -> Pid {
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
    fn identifies_this_process_and_no_other() {
        let own = ProcessRef::of(std::process::id()).unwrap();
        assert!(own.alive());
        let other = ProcessRef { start_time: own.start_time + 1, ..own };
        assert!(!other.alive());
        assert!(!other.kill());
        assert_eq!(ProcessRef::of(u32::MAX), None);
    }

    #[test]
    fn a_name_may_hold_parentheses() {
        assert_eq!(after_name("7 (a) b) (c) S 1 2"), Some("S 1 2"));
    }
}
