//! Containers' control groups (v2).

use std::fs;
use std::io::{ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::boot::make_dir;
use crate::devices::{self, Rule};
use crate::error::{Doing, Result, internal, late};
use crate::limits::Write;
use crate::reaper::kill;

/// Where the one hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The containers' parent group.
const PARENT: &str = "bulkhead";

/// How long the kernel may take to freeze or to end what was killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands every controller down to where containers are.
pub(crate) fn prepare() -> Result<()> {
    let parent = Path::new(ROOT).join(PARENT);
    make_dir(&parent)?;
    for group in [Path::new(ROOT), &parent] {
        let controllers = group.join("cgroup.controllers");
        let list = fs::read_to_string(&controllers)
            .doing(|| format!("reading {}", controllers.display()))?;
        for controller in list.split_whitespace() {
            let file = group.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .doing(|| format!("handing {controller} down in {}", file.display()))?;
        }
    }
    Ok(())
}

/// Kills every process of every container.
pub(crate) fn kill_all() -> Result<()> {
    Cgroup(Path::new(ROOT).join(PARENT)).kill()
}

/// A container's control group.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// That of `container`, a checked id.
    pub(crate) fn of(container: &str) -> Self {
        Self(Path::new(ROOT).join(PARENT).join(container))
    }

    /// Its path as the OCI specification wants it: from the hierarchy's root.
    pub(crate) fn spec_path(container: &str) -> String {
        format!("/{PARENT}/{container}")
    }

    pub(crate) fn create(&self) -> Result<()> {
        fs::create_dir(&self.0).doing(|| format!("making the control group {}", self.0.display()))
    }

    /// Writes limits in their order. A file that is not there fails only where it must be.
    pub(crate) fn write(&self, writes: &[Write]) -> Result<()> {
        for write in writes {
            let file = self.0.join(&write.file);
            match fs::write(&file, &write.value) {
                Ok(()) => {}
                Err(error) if !write.required && error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error)
                        .doing(|| format!("writing {:?} to {}", write.value, file.display()));
                }
            }
        }
        Ok(())
    }

    /// Holds it to the devices that `rules` allow.
    pub(crate) fn confine(&self, rules: &[Rule]) -> Result<()> {
        devices::confine(&self.0, rules)
    }

    /// Where one of its files is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes one of its files.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        let file = self.file(name);
        fs::write(&file, value).doing(|| format!("writing {value:?} to {}", file.display()))
    }

    /// A group anywhere.
    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// A file's text, `None` where it is not there.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    /// The number in a file; `max` and a missing file are `None`.
    pub(crate) fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// The number after `key` in a file of `key value` lines.
    pub(crate) fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        keyed(&self.read(file)?, key)
    }

    /// Whether the out-of-memory killer took a process of it.
    pub(crate) fn oom_killed(&self) -> bool {
        self.keyed("memory.events", "oom_kill").is_some_and(|kills| kills > 0)
    }

    /// Processes in it and below, as numbers of the guest.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for group in groups(&self.0) {
            let file = group.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok())),
                // It went meanwhile, with its processes.
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error).doing(|| format!("reading {}", file.display())),
            }
        }
        Ok(pids)
    }

    /// Sends `signal` to every process in it. False when there is none.
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
                Err(refused) => {
                    return Err(internal(format!(
                        "sending signal {signal} to process {pid}: {refused}"
                    )));
                }
            }
        }
        Ok(!pids.is_empty())
    }

    /// Kills every process in it, those that are just being born included.
    pub(crate) fn kill(&self) -> Result<()> {
        let file = self.0.join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(error) if !gone(&error) => {
                Err(error).doing(|| format!("writing {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Freezes or thaws it, and waits until it is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let file = self.0.join("cgroup.freeze");
        let value = if frozen { "1" } else { "0" };
        fs::write(&file, value).doing(|| format!("writing {value:?} to {}", file.display()))?;
        let done = self.await_event("frozen", u64::from(frozen));
        if frozen && done.is_err() {
            // Half frozen is worse than running.
            let _ = fs::write(&file, "0");
        }
        done
    }

    /// Kills what is in it, waits for its end and removes it. Fine when it is not there.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        self.kill()?;
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        self.await_event("populated", 0)?;
        let mut below = groups(&self.0);
        below.reverse();
        for group in below {
            match fs::remove_dir(&group) {
                Err(error) if !gone(&error) => {
                    return Err(error)
                        .doing(|| format!("removing the control group {}", group.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until `key` of cgroup.events is `value`; the kernel tells of each change.
    fn await_event(&self, key: &str, value: u64) -> Result<()> {
        let path = self.0.join("cgroup.events");
        let doing = || format!("reading {}", path.display());
        let until = Instant::now() + PATIENCE;
        let mut file = fs::File::open(&path).doing(doing)?;
        loop {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).doing(doing)?;
            if keyed(&text, key) == Some(value) {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = PATIENCE.as_secs();
                return Err(late(format!(
                    "{} does not say {key:?} {value} after {waited} s",
                    path.display()
                )));
            }
            let mut events = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut events, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).doing(|| format!("awaiting {}", path.display())),
            }
        }
    }
}

/// A group and the ones below it, parents first.
fn groups(root: &Path) -> Vec<PathBuf> {
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

fn gone(error: &std::io::Error) -> bool {
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
    fn a_key_is_the_whole_word() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "kill"), None);
    }

    #[test]
    fn groups_below_come_after_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let found = groups(dir.path());
        assert_eq!(found, [dir.path().into(), dir.path().join("a"), dir.path().join("a/b")]);
    }
}
