//! The Pod's own cgroup, the parent of its sandbox and containers, as the kubelet keeps one.

use sandbox_host::cgroup::{Cgroup, CgroupError, Limits};

use crate::reporter::Reporter;

/// The parent of all Pods' cgroups.
const PARENT: &str = "/bulkhead-play";

/// What manages the cgroups of Pods, which decides how they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime itself: paths.
    Cgroupfs,
    /// systemd: slices.
    Systemd,
}

/// The name of a Pod's cgroup for CRI: a path, or a slice if systemd manages cgroups.
pub(crate) fn parent(uid: &str, driver: CgroupDriver) -> String {
    match driver {
        CgroupDriver::Cgroupfs => format!("{PARENT}/pod{uid}"),
        CgroupDriver::Systemd => format!("bulkhead-play-pod{}.slice", uid.replace('-', "_")),
    }
}

/// Whether a name is that of a systemd slice.
pub(crate) fn is_slice(parent: &str) -> bool {
    parent.ends_with(".slice")
}

/// Creates the Pod's cgroup in every hierarchy, with its limits.
///
/// The runtime would create it too, but while it is empty the removal of another Pod could remove their common parent
/// at the same time.
pub(crate) fn create(uid: &str, limits: &Limits) -> Result<(), CgroupError> {
    let group = Cgroup::new(&parent(uid, CgroupDriver::Cgroupfs))?;
    group.create_everywhere()?;
    group.limit(limits)
}

/// Removes the Pod's cgroup, and the common parent after the last Pod.
///
/// Empty cgroups that the runtime left in it are removed too, as under the kubelet, but reported: a runtime should
/// remove what it creates. A cgroup with processes in it is an error.
pub(crate) async fn remove(uid: &str, reporter: &dyn Reporter) -> Result<(), CgroupError> {
    let leaked = Cgroup::new(&parent(uid, CgroupDriver::Cgroupfs))?.remove_tree().await?;
    if let Some(path) = leaked {
        let path = path.display();
        reporter.line(&format!("note: the runtime left cgroups behind, such as {path}; removed"));
    }
    Cgroup::new(PARENT)?.remove_if_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(parent("a-b", CgroupDriver::Cgroupfs), "/bulkhead-play/poda-b");
        assert_eq!(parent("a-b", CgroupDriver::Systemd), "bulkhead-play-poda_b.slice");
        assert!(is_slice(&parent("a-b", CgroupDriver::Systemd)));
    }
}
