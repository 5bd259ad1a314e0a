//! The surroundings of a case: one containerd, one handler, a CRI client, unique names.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::cri::Cri;
use crate::bed::containerd::Node;
use crate::bed::handler::Handler;
use crate::bed::traces::cgroup_roots;

/// The surroundings of one case.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The daemon.
    pub(crate) node: Arc<Node>,
    /// The handler of the Pods.
    pub(crate) handler: Handler,
    /// CRI on the daemon.
    pub(crate) cri: Cri,
    case: &'static str,
}

/// Why a case cannot be played here; printed.
#[derive(Debug)]
pub(crate) struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Returns from a case as skipped.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Stage {
    /// A stage for `case`.
    pub(crate) fn new(node: Arc<Node>, handler: Handler, case: &'static str) -> Result<Self> {
        let cri = Cri::new(&node.socket())?;
        Ok(Self { node, handler, cri, case })
    }

    /// A new name that contains the case's.
    pub(crate) fn unique(&self) -> String {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.case.replace('_', "-"))
    }

    /// A new empty folder, for volumes.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let dir = self.node.lib().join("volumes").join(self.unique());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Makes the cgroup of a Pod in every hierarchy, as a kubelet does.
    pub(crate) fn make_cgroup(&self, name: &str) -> Result<String> {
        let path = format!("{}/pod{name}", self.node.place().cgroup());
        for root in cgroup_roots() {
            let dir = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            seed_cpuset(&root, &path);
            delegate(&root, &path);
        }
        Ok(path)
    }

    /// Removes the Pod's cgroup where it is empty; one that is not is found as a leak.
    pub(crate) fn drop_cgroup(&self, path: &str) {
        for root in cgroup_roots() {
            let _ = fs::remove_dir(root.join(path.trim_start_matches('/')));
        }
    }
}

/// With cgroup v2 a group has only the controllers that every group above it delegates.
fn delegate(root: &std::path::Path, path: &str) {
    if root != std::path::Path::new("/sys/fs/cgroup") {
        return;
    }
    let Ok(all) = fs::read_to_string(root.join("cgroup.controllers")) else { return };
    let mut dir = root.to_owned();
    for part in path.trim_start_matches('/').split('/') {
        for controller in all.split_whitespace() {
            // Some controllers cannot be delegated, and those are not needed.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        dir.push(part);
    }
}

/// A v1 cpuset group without cpus and mems takes no process.
fn seed_cpuset(root: &std::path::Path, path: &str) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut dir = root.to_owned();
        for part in path.trim_start_matches('/').split('/') {
            let above = fs::read_to_string(dir.join(file)).unwrap_or_default();
            dir.push(part);
            let here = fs::read_to_string(dir.join(file)).unwrap_or_default();
            if here.trim().is_empty() && !above.trim().is_empty() {
                let _ = fs::write(dir.join(file), above.trim());
            }
        }
    }
}
