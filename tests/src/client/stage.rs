//! What a case is given: one containerd, one handler, a CRI client, and a name to make others from.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::cri::Cri;
use crate::bed::containerd::Node;
use crate::bed::handler::Handler;
use crate::bed::traces::cgroup_roots;

/// One case's stage.
#[derive(Debug)]
pub struct Stage {
    /// The daemon.
    pub node: Arc<Node>,
    /// Who runs the Pods.
    pub handler: Handler,
    /// CRI on the daemon.
    pub cri: Cri,
    case: &'static str,
}

/// A case that cannot be played here, with the reason that is printed.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a case as skipped.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Stage {
    /// A stage for `case`.
    pub fn new(node: Arc<Node>, handler: Handler, case: &'static str) -> Result<Self> {
        let cri = Cri::new(&node.socket())?;
        Ok(Self { node, handler, cri, case })
    }

    /// A name that no other call gets, with the case's in it.
    pub fn unique(&self) -> String {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.case.replace('_', "-"))
    }

    /// An empty folder of this case's, for volumes.
    pub fn folder(&self) -> Result<PathBuf> {
        let dir = self.node.lib().join("volumes").join(self.unique());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// The cgroup of a Pod, made in every hierarchy as a kubelet would.
    pub fn make_cgroup(&self, name: &str) -> Result<String> {
        let path = format!("{}/pod{name}", self.node.place().cgroup());
        for root in cgroup_roots() {
            let dir = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            seed_cpuset(&root, &path);
            delegate(&root, &path);
        }
        Ok(path)
    }

    /// Removes the Pod's cgroup where it is empty; what is not stays, and is counted as left.
    pub fn drop_cgroup(&self, path: &str) {
        for root in cgroup_roots() {
            let _ = fs::remove_dir(root.join(path.trim_start_matches('/')));
        }
    }
}

/// On a machine of v2 alone a group has the controllers that every group above it hands down.
fn delegate(root: &std::path::Path, path: &str) {
    if root != std::path::Path::new("/sys/fs/cgroup") {
        return;
    }
    let Ok(all) = fs::read_to_string(root.join("cgroup.controllers")) else { return };
    let mut dir = root.to_owned();
    for part in path.trim_start_matches('/').split('/') {
        for controller in all.split_whitespace() {
            // Not every controller can be handed down, and none that cannot is missed.
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
