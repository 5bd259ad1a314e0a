//! The group itself: create, join, leave, remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::CgroupError;
use super::file::{text, write};
use super::path::relative;
use crate::error::{Classified as _, Kind};

/// Where cgroup file systems are mounted (systemd's file hierarchy; every distribution follows).
pub const MOUNT: &str = "/sys/fs/cgroup";

/// The v1 controllers of a Pod's group. Others have no use, and joining each one waits for an RCU
/// grace period.
const CONTROLLERS_V1: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "cpuset"];

/// The v2 controllers to enable for a Pod's group, where the kernel has them.
const CONTROLLERS_V2: [&str; 5] = ["memory", "cpu", "pids", "cpuset", "io"];

/// How long a process that has exited may keep its group busy.
const BUSY: Duration = Duration::from_secs(2);

/// The interface version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The interface of the hierarchies mounted at [`MOUNT`].
pub fn host_version() -> Version {
    version_at(Path::new(MOUNT))
}

fn version_at(mount: &Path) -> Version {
    let unified = mount.join("cgroup.controllers").exists();
    if unified { Version::V2 } else { Version::V1 }
}

/// A Pod's group. Dropping it does not remove it, [`Cgroup::remove`] does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    pub(super) mount: PathBuf,
    /// Below each hierarchy's root, without a leading slash.
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

impl Cgroup {
    /// The group that `cgroups_path` (of the OCI specification) names; does not create it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Path`] when it would be outside the hierarchy.
    pub fn new(cgroups_path: &str) -> Result<Self, CgroupError> {
        Self::below(Path::new(MOUNT), cgroups_path)
    }

    /// As [`Cgroup::new`], with the hierarchies mounted at `mount`.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::new`].
    pub fn below(mount: &Path, cgroups_path: &str) -> Result<Self, CgroupError> {
        let path = relative(cgroups_path)?;
        Ok(Self { mount: mount.to_owned(), path, version: version_at(mount) })
    }

    /// The roots of the hierarchies the group is in.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        match self.version {
            Version::V2 => vec![self.mount.clone()],
            Version::V1 => CONTROLLERS_V1
                .iter()
                .map(|controller| self.mount.join(controller))
                .filter(|root| root.join("cgroup.procs").exists())
                .collect(),
        }
    }

    /// The group's directory in each hierarchy.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        self.roots().into_iter().map(|root| root.join(&self.path)).collect()
    }

    /// The directory with the files of `controller`.
    pub(super) fn directory(&self, controller: &str) -> PathBuf {
        match self.version {
            Version::V2 => self.mount.join(&self.path),
            Version::V1 => self.mount.join(controller).join(&self.path),
        }
    }

    /// Creates the group, and parents that do not exist.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the directory.
    pub fn create(&self) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => {
                for directory in self.directories() {
                    fs::create_dir_all(&directory)
                        .map_err(CgroupError::io("creating", &directory))?;
                }
                self.inherit_cpuset()
            }
            Version::V2 => {
                let mut at = self.mount.clone();
                for part in &self.path {
                    delegate(&at);
                    at.push(part);
                    match fs::create_dir(&at) {
                        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(CgroupError::io("creating", &at)(e));
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Sets CPUs and memory nodes of every level to its parent's: a new v1 cpuset group has none
    /// and does not accept a process.
    fn inherit_cpuset(&self) -> Result<(), CgroupError> {
        let mut at = self.mount.join("cpuset");
        if !at.join("cgroup.procs").exists() {
            return Ok(());
        }
        for part in &self.path {
            let parent = at.clone();
            at.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if text(&at.join(file))?.trim().is_empty() {
                    write(&at.join(file), text(&parent.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// Moves this process into the group; its later children start there.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the file.
    pub fn join(&self) -> Result<(), CgroupError> {
        let pid = std::process::id().to_string();
        self.directories().iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid))
    }

    /// Moves this process to the root of each hierarchy, so that the group can be removed.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the file.
    pub fn leave(&self) -> Result<(), CgroupError> {
        let pid = std::process::id().to_string();
        self.roots().iter().try_for_each(|root| write(&root.join("cgroup.procs"), &pid))
    }

    /// The processes in the group.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`]; a group that does not exist has no processes.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let file = self.directory("memory").join("cgroup.procs");
        match text(&file) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(e) if e.kind() == Kind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Removes the group, but not its parents; succeeds if it does not exist. Its processes must
    /// have exited; waits up to two seconds for the kernel to release them.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the first directory that could not be removed.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let removal = async {
            let mut pause = Duration::from_millis(1);
            loop {
                match self.try_remove() {
                    Err(CgroupError::Io { source, .. })
                        if source.kind() == io::ErrorKind::ResourceBusy =>
                    {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(100));
                    }
                    result => return result,
                }
            }
        };
        match tokio::time::timeout(BUSY, removal).await {
            Ok(result) => result,
            Err(_) => self.try_remove(),
        }
    }

    fn try_remove(&self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for directory in self.directories() {
            match fs::remove_dir(&directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    result = result.and(Err(CgroupError::io("removing", &directory)(e)));
                }
                _ => {}
            }
        }
        result
    }
}

/// Enables the controllers for the children of `parent`. One that is not available there is
/// skipped: its files will be missing below, and an access to one fails with an error that names
/// it.
fn delegate(parent: &Path) {
    for controller in CONTROLLERS_V2 {
        let file = parent.join("cgroup.subtree_control");
        if let Err(error) = fs::write(&file, format!("+{controller}")) {
            tracing::debug!(%controller, file = %file.display(), "not enabled: {error}");
        }
    }
}
