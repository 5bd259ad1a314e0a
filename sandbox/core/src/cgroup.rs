//! A Pod's control group on the host, in both versions.
//!
//! The paths are those of the OCI runtime specification's `linux.cgroupsPath`: a path below each
//! hierarchy's mount (cgroupfs driver), or `slice:prefix:name` (systemd driver).

mod limits;
mod path;
mod read;
mod tree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Classified, Kind};

pub use limits::Limits;
pub use path::relative;

/// Where cgroup file systems are mounted (systemd's file hierarchy; every distribution follows).
pub const MOUNT: &str = "/sys/fs/cgroup";

/// The v1 controllers a Pod is put under. The others gain a Pod nothing, and each one joined
/// costs a wait for the kernel.
const CONTROLLERS_V1: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "cpuset"];

/// The v2 controllers handed down to a Pod's group, where the kernel has them.
const CONTROLLERS_V2: [&str; 5] = ["memory", "cpu", "pids", "cpuset", "io"];

/// How long an ended process may keep its group busy.
const BUSY: Duration = Duration::from_secs(2);

/// A cgroup that could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path is no cgroup path.
    #[error("cgroup path {path:?} is not allowed: {reason}")]
    Path {
        /// `linux.cgroupsPath` as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file or directory of it.
    #[error("{verb} {path}")]
    Io {
        /// `creating`, `writing VALUE to`, `reading` or `removing`.
        verb: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CgroupError {
    fn io(verb: impl Into<String>, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let (verb, path) = (verb.into(), path.to_owned());
        move |source| Self::Io { verb, path, source }
    }
}

impl Classified for CgroupError {
    fn kind(&self) -> Kind {
        match self {
            Self::Path { .. } => Kind::InvalidArgument,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                io::ErrorKind::InvalidInput => Kind::InvalidArgument,
                _ => Kind::Internal,
            },
        }
    }
}

/// Which interface the host offers.
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

/// A Pod's group. Dropping it changes nothing; [`Cgroup::remove`] removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    mount: PathBuf,
    /// Below each hierarchy's root, without a leading slash.
    path: PathBuf,
    version: Version,
}

impl Cgroup {
    /// The group that `cgroups_path` (of the OCI specification) names. Nothing is made yet.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Path`] when it would leave the hierarchy.
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
    fn roots(&self) -> Vec<PathBuf> {
        match self.version {
            Version::V2 => vec![self.mount.clone()],
            Version::V1 => CONTROLLERS_V1
                .iter()
                .map(|controller| self.mount.join(controller))
                .filter(|root| root.join("cgroup.procs").exists())
                .collect(),
        }
    }

    /// Every directory that makes up the group.
    fn directories(&self) -> Vec<PathBuf> {
        self.roots().into_iter().map(|root| root.join(&self.path)).collect()
    }

    /// The directory where `controller`'s files are.
    fn directory(&self, controller: &str) -> PathBuf {
        match self.version {
            Version::V2 => self.mount.join(&self.path),
            Version::V1 => self.mount.join(controller).join(&self.path),
        }
    }

    /// Makes the group, and its parents where they do not exist.
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

    /// A new v1 cpuset group is empty and takes no process: gives every level its parent's CPUs
    /// and memory nodes.
    fn inherit_cpuset(&self) -> Result<(), CgroupError> {
        let mut at = self.mount.join("cpuset");
        if !at.join("cgroup.procs").exists() {
            return Ok(());
        }
        for part in &self.path {
            let parent = at.clone();
            at.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if read::text(&at.join(file))?.trim().is_empty() {
                    write(&at.join(file), read::text(&parent.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// Moves this process into the group: whatever it starts from then on is born there.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the file.
    pub fn join(&self) -> Result<(), CgroupError> {
        let pid = std::process::id().to_string();
        self.directories().iter().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid))
    }

    /// Moves this process out of the group, to the hierarchies' roots, so that the group can be
    /// removed.
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
    /// [`CgroupError::Io`]; a group that is not there has no processes.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let file = self.directory("memory").join("cgroup.procs");
        match read::text(&file) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(e) if e.kind() == Kind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Removes the group. Its processes must have ended; ended ones that the kernel still counts
    /// are waited for, for two seconds at most. Parents stay. Fine when the group is gone.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the first directory that stays.
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

/// Hands the controllers down to `parent`'s children. One that the kernel lacks, or that its
/// parent's owner does not hand down, is left out: its files will be missing below, and whoever
/// needs one of them gets an error that names it.
fn delegate(parent: &Path) {
    for controller in CONTROLLERS_V2 {
        let file = parent.join("cgroup.subtree_control");
        if let Err(error) = fs::write(&file, format!("+{controller}")) {
            log::debug!("cgroup controller {controller} is not handed down at {file:?}: {error}");
        }
    }
}

fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(file, value).map_err(CgroupError::io(format!("writing {value} to"), file))
}

#[cfg(test)]
mod tests;
