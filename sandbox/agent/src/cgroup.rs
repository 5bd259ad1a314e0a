//! Containers' cgroups (v2).

use std::fs;
use std::io::{ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_system::{CGROUPS, make_dir};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::devices::{self, Rule};
use crate::error::{Doing, Result, internal, late};
use crate::limits::Setting;
use crate::reaper::kill;

/// The containers' parent cgroup.
const PARENT: &str = "bulkhead";

/// How long the kernel may take to freeze or kill a cgroup's processes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Enables every controller for the containers' cgroups.
pub(crate) fn prepare() -> Result<()> {
    let parent = Path::new(CGROUPS).join(PARENT);
    make_dir(&parent)?;
    for group in [Path::new(CGROUPS), &parent] {
        let controllers = group.join("cgroup.controllers");
        let list = fs::read_to_string(&controllers)
            .doing(|| format!("reading {}", controllers.display()))?;
        for controller in list.split_whitespace() {
            let file = group.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .doing(|| format!("enabling {controller} in {}", file.display()))?;
        }
    }
    Ok(())
}

/// Kills every process of every container.
pub(crate) fn kill_all() -> Result<()> {
    Cgroup(Path::new(CGROUPS).join(PARENT)).kill()
}

/// A container's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup of `container`, a checked ID.
    pub(crate) fn of(container: &str) -> Self {
        Self(Path::new(CGROUPS).join(PARENT).join(container))
    }

    /// Its path in the OCI specification, which starts at the hierarchy's root.
    pub(crate) fn spec_path(container: &str) -> String {
        format!("/{PARENT}/{container}")
    }

    pub(crate) fn create(&self) -> Result<()> {
        fs::create_dir(&self.0).doing(|| format!("creating the cgroup {}", self.0.display()))
    }

    /// Writes settings in order. A missing file is an error only where it is required.
    pub(crate) fn write_all(&self, settings: &[Setting]) -> Result<()> {
        for setting in settings {
            let file = self.0.join(&setting.file);
            match fs::write(&file, &setting.value) {
                Ok(()) => {}
                Err(error) if !setting.required && error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error)
                        .doing(|| format!("writing {:?} to {}", setting.value, file.display()));
                }
            }
        }
        Ok(())
    }

    /// Restricts it to the devices that `rules` allow.
    pub(crate) fn restrict_devices(&self, rules: &[Rule]) -> Result<()> {
        devices::restrict(&self.0, rules)
    }

    /// The path of one of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes one of its files.
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<()> {
        let file = self.file(name);
        fs::write(&file, value).doing(|| format!("writing {value:?} to {}", file.display()))
    }

    /// A directory that stands for a cgroup.
    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// A file's text, `None` if it cannot be read.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    /// The number in a file, `None` for `max` and for a missing file.
    pub(crate) fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// The number after `key` in a file of `key value` lines.
    pub(crate) fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        keyed(&self.read(file)?, key)
    }

    /// Whether the OOM killer has killed a process in it.
    pub(crate) fn oom_killed(&self) -> bool {
        self.keyed("memory.events", "oom_kill").is_some_and(|kills| kills > 0)
    }

    /// PIDs of the processes in it and in its descendants.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for group in descendants(&self.0) {
            let file = group.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok())),
                // It was removed meanwhile.
                Err(error) if is_removed(&error) => {}
                Err(error) => return Err(error).doing(|| format!("reading {}", file.display())),
            }
        }
        Ok(pids)
    }

    /// Sends `signal` to every process in it. False if there is none.
    pub(crate) fn signal(&self, signal: i32) -> Result<bool> {
        if signal == libc::SIGKILL {
            let any = !self.pids()?.is_empty();
            self.kill()?;
            return Ok(any);
        }
        let pids = self.pids()?;
        for pid in &pids {
            match kill(*pid, signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(internal(format!(
                        "sending signal {signal} to process {pid}: {errno}"
                    )));
                }
            }
        }
        Ok(!pids.is_empty())
    }

    /// Kills every process in it, including those that are being forked.
    pub(crate) fn kill(&self) -> Result<()> {
        let file = self.0.join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(error) if !is_removed(&error) => {
                Err(error).doing(|| format!("writing {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Freezes or thaws it, and waits until that is done.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let file = self.0.join("cgroup.freeze");
        let value = if frozen { "1" } else { "0" };
        fs::write(&file, value).doing(|| format!("writing {value:?} to {}", file.display()))?;
        let done = self.await_event("frozen", u64::from(frozen));
        if frozen && done.is_err() {
            // Running is better than half frozen.
            let _ = fs::write(&file, "0");
        }
        done
    }

    /// Kills its processes, waits until they have exited and removes it. Succeeds if it does not
    /// exist.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        self.kill()?;
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        self.await_event("populated", 0)?;
        for group in descendants(&self.0).into_iter().rev() {
            match fs::remove_dir(&group) {
                Err(error) if !is_removed(&error) => {
                    return Err(error).doing(|| format!("removing the cgroup {}", group.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until `key` of cgroup.events is `value`. The kernel notifies of each change.
    fn await_event(&self, key: &str, value: u64) -> Result<()> {
        let path = self.0.join("cgroup.events");
        let doing = || format!("reading {}", path.display());
        let deadline = Instant::now() + TIMEOUT;
        let mut file = fs::File::open(&path).doing(doing)?;
        loop {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).doing(doing)?;
            if keyed(&text, key) == Some(value) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late(format!(
                    "{}: {key} is not {value} after {} s",
                    path.display(),
                    TIMEOUT.as_secs()
                )));
            }
            let mut events = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut events, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    return Err(error).doing(|| format!("waiting for {}", path.display()));
                }
            }
        }
    }
}

/// A cgroup and its descendants, parents first.
fn descendants(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = fs::read_dir(&found[next]) {
            let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            found.extend(dirs.map(|entry| entry.path()));
        }
        next += 1;
    }
    found
}

fn is_removed(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The number after `key` in lines of `key value`.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_word() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "kill"), None);
    }

    #[test]
    fn descendants_come_after_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let found = descendants(dir.path());
        assert_eq!(found, [dir.path().into(), dir.path().join("a"), dir.path().join("a/b")]);
    }
}
