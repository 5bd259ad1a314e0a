//! Everything that ends in the guest is reaped here, and nowhere else.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::clock;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The exit code, or 128 plus the signal's number.
    pub(crate) status: u32,
    /// Nanoseconds since 1970, UTC.
    pub(crate) at_ns: i64,
}

/// Knows who waits for which process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<i32, oneshot::Sender<Ended>>,
    /// Ends of processes that nobody watches yet, kept while somebody expects a new one.
    unclaimed: HashMap<i32, Ended>,
    expecting: usize,
}

/// While it lives no end of any process is forgotten.
#[derive(Debug)]
pub(crate) struct Expecting(Reaper);

impl Reaper {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects every process that has ended.
    pub(crate) fn reap(&self) {
        let mut table = self.table();
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
            match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) => table.ended(pid, code.unsigned_abs()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    table.ended(pid, 128 + (signal as i32).unsigned_abs());
                }
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Keeps ends until the answer is dropped.
    pub(crate) fn expect(&self) -> Expecting {
        self.table().expecting += 1;
        Expecting(self.clone())
    }

    /// Starts a process and watches it. The table is held meanwhile: when the program cannot
    /// be executed, the standard library waits for the forked process itself.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
    ) -> io::Result<(u32, oneshot::Receiver<Ended>)> {
        let mut table = self.table();
        let child = command.spawn()?;
        Ok((child.id(), table.watch(child.id())))
    }

    /// Sends `signal` to the watched process `pid`. False when it has ended: its number may be
    /// somebody else's by now.
    pub(crate) fn signal(&self, pid: u32, signal: i32) -> nix::Result<bool> {
        let table = self.table();
        if !table.watched.contains_key(&(pid as i32)) {
            return Ok(false);
        }
        match kill(pid, signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(refused) => Err(refused),
        }
    }
}

impl Expecting {
    /// Watches `pid`, which may have ended since the wait began.
    pub(crate) fn watch(&self, pid: u32) -> oneshot::Receiver<Ended> {
        self.0.table().watch(pid)
    }
}

impl Drop for Expecting {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.expecting -= 1;
        if table.expecting == 0 {
            table.unclaimed = HashMap::new();
        }
    }
}

impl Table {
    fn ended(&mut self, pid: Pid, status: u32) {
        let ended = Ended { status, at_ns: clock::now() };
        match self.watched.remove(&pid.as_raw()) {
            // Who waited may have gone.
            Some(waiting) => drop(waiting.send(ended)),
            None if self.expecting > 0 => drop(self.unclaimed.insert(pid.as_raw(), ended)),
            None => {}
        }
    }

    fn watch(&mut self, pid: u32) -> oneshot::Receiver<Ended> {
        let pid = pid as i32;
        let (sender, receiver) = oneshot::channel();
        match self.unclaimed.remove(&pid) {
            Some(ended) => drop(sender.send(ended)),
            None => drop(self.watched.insert(pid, sender)),
        }
        receiver
    }
}

/// Sends the signal with this number; nix knows no real-time ones.
pub(crate) fn kill(pid: u32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of this process.
    Errno::result(unsafe { libc::kill(pid as i32, signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_before_the_watch_is_kept_while_expected() {
        let reaper = Reaper::default();
        reaper.table().ended(Pid::from_raw(5), 1);
        let expecting = reaper.expect();
        reaper.table().ended(Pid::from_raw(7), 137);
        let mut seven = expecting.watch(7);
        let mut five = expecting.watch(5);
        assert_eq!(seven.try_recv().unwrap().status, 137);
        assert!(five.try_recv().is_err());
        reaper.table().ended(Pid::from_raw(5), 3);
        assert_eq!(five.try_recv().unwrap().status, 3);
        reaper.table().ended(Pid::from_raw(9), 0);
        drop(expecting);
        assert!(reaper.table().unclaimed.is_empty());
    }

    #[test]
    fn an_ended_process_gets_no_signal() {
        assert_eq!(Reaper::default().signal(std::process::id(), libc::SIGKILL), Ok(false));
    }
}
