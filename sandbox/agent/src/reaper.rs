//! Reaps every process that exits in the guest: the agent is PID 1, so orphans are its children.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::Arc;

use agent_system::now;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A reaped process's exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus {
    /// The exit code, or 128 plus the signal's number.
    pub(crate) status: u32,
    /// Nanoseconds since 1970, UTC.
    pub(crate) at_ns: i64,
}

/// Reaps processes and reports the exits of those that are watched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<i32, oneshot::Sender<ExitStatus>>,
    /// Exits of unwatched processes, kept while `expecting` is not zero.
    unclaimed: HashMap<i32, ExitStatus>,
    expecting: usize,
}

/// Keeps the exits of unwatched processes until it is dropped, for a process whose PID becomes
/// known only after it was forked.
#[derive(Debug)]
pub(crate) struct ExpectedProcess(Reaper);

impl Reaper {
    /// Reaps every process that has exited.
    pub(crate) fn reap(&self) {
        let mut table = self.0.lock();
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
            match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) => table.exited(pid, code.unsigned_abs()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    table.exited(pid, 128 + (signal as i32).unsigned_abs());
                }
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Announces a process that is to be watched once its PID is known.
    pub(crate) fn expect(&self) -> ExpectedProcess {
        self.0.lock().expecting += 1;
        ExpectedProcess(self.clone())
    }

    /// Starts a process and watches it.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
    ) -> io::Result<(u32, oneshot::Receiver<ExitStatus>)> {
        // Held across fork and exec, so that `reap` does not take the exit of a child whose exec
        // failed: the standard library waits for that child itself. Bounded by the exec of the
        // agent's own binary, which is in memory.
        let mut table = self.0.lock();
        let child = command.spawn()?;
        Ok((child.id(), table.watch(child.id())))
    }

    /// Sends `signal` to the watched process `pid`. False if it has exited: another process may
    /// have its PID by now.
    pub(crate) fn signal(&self, pid: u32, signal: i32) -> nix::Result<bool> {
        let table = self.0.lock();
        if !table.watched.contains_key(&(pid as i32)) {
            return Ok(false);
        }
        match kill(pid, signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

impl ExpectedProcess {
    /// Watches `pid`, which may have exited since [`Reaper::expect`].
    pub(crate) fn watch(&self, pid: u32) -> oneshot::Receiver<ExitStatus> {
        self.0.0.lock().watch(pid)
    }
}

impl Drop for ExpectedProcess {
    fn drop(&mut self) {
        let mut table = self.0.0.lock();
        table.expecting -= 1;
        if table.expecting == 0 {
            table.unclaimed = HashMap::new();
        }
    }
}

impl Table {
    fn exited(&mut self, pid: Pid, status: u32) {
        let exit = ExitStatus { status, at_ns: now() };
        match self.watched.remove(&pid.as_raw()) {
            // The receiver may have been dropped.
            Some(watcher) => drop(watcher.send(exit)),
            None if self.expecting > 0 => drop(self.unclaimed.insert(pid.as_raw(), exit)),
            None => {}
        }
    }

    fn watch(&mut self, pid: u32) -> oneshot::Receiver<ExitStatus> {
        let pid = pid as i32;
        let (sender, receiver) = oneshot::channel();
        match self.unclaimed.remove(&pid) {
            Some(exit) => drop(sender.send(exit)),
            None => drop(self.watched.insert(pid, sender)),
        }
        receiver
    }
}

/// Sends the signal with this number; nix has no real-time ones.
pub(crate) fn kill(pid: u32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of this process.
    Errno::result(unsafe { libc::kill(pid as i32, signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_before_the_watch_is_kept_while_expected() {
        let reaper = Reaper::default();
        let exited = |pid, status| reaper.0.lock().exited(Pid::from_raw(pid), status);
        exited(5, 1);
        let expecting = reaper.expect();
        exited(7, 137);
        let mut seven = expecting.watch(7);
        let mut five = expecting.watch(5);
        assert_eq!(seven.try_recv().unwrap().status, 137);
        assert!(five.try_recv().is_err());
        exited(5, 3);
        assert_eq!(five.try_recv().unwrap().status, 3);
        exited(9, 0);
        drop(expecting);
        assert!(reaper.0.lock().unclaimed.is_empty());
    }

    #[test]
    fn an_exited_process_gets_no_signal() {
        assert_eq!(Reaper::default().signal(std::process::id(), libc::SIGKILL), Ok(false));
    }
}
