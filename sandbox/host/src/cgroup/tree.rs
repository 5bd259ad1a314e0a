//! A group that a container runtime creates groups in: in every hierarchy, and removed with everything below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::CgroupError;
use super::group::{Cgroup, Version};
use crate::error::{Classified, Kind};

/// Upper bound on removals of a common parent during one creation.
const CONTENDERS: u32 = 100;

/// How long the runtime has to remove its own groups below the group.
const COURTESY: Duration = Duration::from_millis(500);

/// How long the kernel may take over the last processes of a group.
const PATIENCE: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(20);

impl Cgroup {
    /// As [`Cgroup::create`], and on v1 also in the hierarchies of all other controllers: a container runtime uses
    /// each of them. Safe against the concurrent removal of an empty parent.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names the directory.
    pub fn create_everywhere(&self) -> Result<(), CgroupError> {
        let mut result = self.try_create_everywhere();
        for _ in 0..CONTENDERS {
            match &result {
                Err(error) if error.kind() == Kind::NotFound => {
                    result = self.try_create_everywhere();
                }
                Ok(()) | Err(_) => break,
            }
        }
        result
    }

    fn try_create_everywhere(&self) -> Result<(), CgroupError> {
        for root in self.hierarchies()? {
            let directory = root.join(&self.path);
            fs::create_dir_all(&directory).map_err(CgroupError::io("creating", &directory))?;
        }
        self.create()
    }

    /// Removes the group from every hierarchy, with the empty groups below it; fine when it does not exist. Waits
    /// half a second for the runtime to remove its own groups, and five seconds for processes that are exiting.
    /// Returns one of the groups that the runtime left behind.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names a group that has processes or cannot be removed.
    pub async fn remove_tree(&self) -> Result<Option<PathBuf>, CgroupError> {
        let started = Instant::now();
        let mut leaked = None;
        for root in self.hierarchies()? {
            let group = root.join(&self.path);
            while !removed(&group)? {
                if started.elapsed() > COURTESY {
                    leaked = remove_below(&group)?.or(leaked);
                }
                if started.elapsed() > PATIENCE {
                    fs::remove_dir(&group).map_err(CgroupError::io("removing", &group))?;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(leaked)
    }

    /// Removes the group from the hierarchies in which it is empty.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`], but not for a group that is in use.
    pub fn remove_if_empty(&self) -> Result<(), CgroupError> {
        for root in self.hierarchies()? {
            removed(&root.join(&self.path))?;
        }
        Ok(())
    }

    /// The roots of all hierarchies; on v1 those of every controller, not only of the Pod's.
    fn hierarchies(&self) -> Result<Vec<PathBuf>, CgroupError> {
        if self.version == Version::V2 {
            return Ok(vec![self.mount.clone()]);
        }
        let failed = || CgroupError::io("reading", &self.mount);
        let mut roots = Vec::new();
        for entry in fs::read_dir(&self.mount).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            // Some names are links to others, such as cpu to cpu,cpuacct.
            if path.is_dir() && !path.is_symlink() {
                roots.push(path);
            }
        }
        Ok(roots)
    }
}

/// Tries to remove a group; `false` if it is in use.
fn removed(group: &Path) -> Result<bool, CgroupError> {
    match fs::remove_dir(group) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(true),
            io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty => Ok(false),
            _ => Err(CgroupError::io("removing", group)(error)),
        },
    }
}

/// Removes the empty groups below one, the deepest first; returns one of them.
fn remove_below(group: &Path) -> Result<Option<PathBuf>, CgroupError> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(CgroupError::io("reading", group))?,
    };
    let mut found = None;
    for entry in entries {
        let path = entry.map_err(CgroupError::io("reading", group))?.path();
        if path.is_dir() {
            found = remove_below(&path)?.or(found);
            if removed(&path)? {
                found = Some(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(controllers: &[&str]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        for controller in controllers {
            fs::create_dir(mount.path().join(controller)).unwrap();
        }
        mount
    }

    #[test]
    fn a_group_is_created_in_and_removed_from_every_hierarchy() {
        let mount = v1(&["memory", "freezer"]);
        std::os::unix::fs::symlink("memory", mount.path().join("link")).unwrap();
        let group = Cgroup::below(mount.path(), "/play/pod").unwrap();
        group.create_everywhere().unwrap();
        for controller in ["memory", "freezer"] {
            assert!(mount.path().join(controller).join("play/pod").is_dir(), "{controller}");
        }
        let parent = Cgroup::below(mount.path(), "/play").unwrap();
        parent.remove_if_empty().unwrap();
        assert!(mount.path().join("memory/play/pod").is_dir());
        for directory in group.hierarchies().unwrap() {
            assert!(removed(&directory.join("play/pod")).unwrap());
        }
        parent.remove_if_empty().unwrap();
        assert!(!mount.path().join("memory/play").exists());
    }

    #[test]
    fn empty_groups_below_are_removed_and_one_is_returned() {
        let mount = v1(&[]);
        let pod = mount.path().join("pod");
        fs::create_dir_all(pod.join("sandbox/deep")).unwrap();
        assert!(!removed(&pod).unwrap());
        assert_eq!(remove_below(&pod).unwrap(), Some(pod.join("sandbox")));
        assert!(removed(&pod).unwrap() && removed(&pod).unwrap());
        assert_eq!(remove_below(&pod).unwrap(), None);
    }

    #[tokio::test]
    #[ignore = "needs cgroup"]
    async fn a_real_group_is_removed_with_what_the_runtime_left_in_it() {
        let parent = format!("/bulkhead-test-tree-{}", std::process::id());
        let group = Cgroup::new(&format!("{parent}/pod")).unwrap();
        group.create_everywhere().unwrap();
        Cgroup::new(&format!("{parent}/pod/left")).unwrap().create().unwrap();
        let parent = Cgroup::new(&parent).unwrap();
        parent.remove_if_empty().unwrap();
        let leaked = group.remove_tree().await.unwrap();
        assert!(leaked.unwrap().ends_with("pod/left"));
        assert_eq!(group.remove_tree().await.unwrap(), None);
        parent.remove_if_empty().unwrap();
        assert!(parent.hierarchies().unwrap().iter().all(|it| !it.join(&parent.path).exists()));
    }
}
