//! Collects the exits of all children, adopted orphans included, for their watchers.

use std::collections::{HashMap, VecDeque};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::exit::Exit;
use crate::host_error::HostError;
use crate::process_ref::raw;

/// How many exits of unwatched processes are kept for a watcher that comes late.
const KEPT: usize = 256;

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: u32,
    /// Resolves when it has exited.
    pub exit: ExitWatch,
}

/// A process's exit; any number of callers can wait for it.
#[derive(Debug, Clone)]
pub struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    /// A watch and the sender that resolves it.
    pub fn pair() -> (watch::Sender<Option<Exit>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The exit, if it has been collected.
    pub fn seen(&self) -> Option<Exit> {
        *self.0.borrow()
    }

    /// Waits for the exit. If the host is dropped first, the process counts as killed.
    pub async fn wait(&self) -> Exit {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or_else(|| Exit::now(Exit::KILLED)),
            Err(_) => Exit::now(Exit::KILLED),
        }
    }
}

/// Watched children, and exits that have no watcher yet.
#[derive(Debug, Default)]
pub(crate) struct Reaper(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<u32, watch::Sender<Option<Exit>>>,
    unclaimed: VecDeque<(u32, Exit)>,
}

impl Reaper {
    /// Starts a process with `spawn` and watches it; it is not reaped in between.
    pub(crate) fn adopt(
        &self,
        spawn: impl FnOnce() -> std::io::Result<std::process::Child>,
    ) -> std::io::Result<Child> {
        let mut table = self.0.lock();
        let pid = spawn()?.id();
        table.unclaimed.retain(|(old, _)| *old != pid);
        Ok(Child { pid, exit: table.watch(pid) })
    }

    /// Watches an adopted orphan, which may have exited already.
    pub(crate) fn watch(&self, pid: u32) -> Result<ExitWatch, HostError> {
        let mut table = self.0.lock();
        if let Some(at) = table.unclaimed.iter().position(|(old, _)| *old == pid) {
            if let Some((_, exit)) = table.unclaimed.remove(at) {
                let (sender, watch) = ExitWatch::pair();
                sender.send_replace(Some(exit));
                return Ok(watch);
            }
        }
        let gone = kill(raw(pid), None) == Err(Errno::ESRCH);
        if gone && !table.watched.contains_key(&pid) {
            return Err(HostError::Gone(pid));
        }
        Ok(table.watch(pid))
    }

    /// Collects every child that has exited.
    pub(crate) fn reap(&self) {
        let mut table = self.0.lock();
        loop {
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                Ok(WaitStatus::Exited(pid, code)) => table.exited(pid, code.unsigned_abs()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    table.exited(pid, 128 + (signal as i32).unsigned_abs());
                }
                Err(Errno::EINTR) => {}
                // StillAlive: no other child has exited. ECHILD: there are no children.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl Table {
    fn watch(&mut self, pid: u32) -> ExitWatch {
        let sender = self.watched.entry(pid).or_insert_with(|| watch::channel(None).0);
        ExitWatch(sender.subscribe())
    }

    fn exited(&mut self, pid: Pid, status: u32) {
        let pid = pid.as_raw().unsigned_abs();
        let exit = Exit::now(status);
        match self.watched.remove(&pid) {
            Some(sender) => {
                sender.send_replace(Some(exit));
            }
            None => {
                if self.unclaimed.len() == KEPT {
                    self.unclaimed.pop_front();
                }
                self.unclaimed.push_back((pid, exit));
            }
        }
    }
}
