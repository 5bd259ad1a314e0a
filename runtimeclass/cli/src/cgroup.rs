//! The Pod's own cgroup, the parent of its sandbox and containers, as the kubelet keeps one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::HostError;
use crate::pod::{CPU_PERIOD, PodLimits};

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "bulkhead-play";
/// More removals than this do not fall into one creation.
const CONTENDERS: u32 = 100;
/// How long the runtime has to remove its own cgroups from the Pod's.
const COURTESY: Duration = Duration::from_millis(500);
/// How long the kernel may take over the last processes of a cgroup.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Who manages the cgroups of Pods, which decides how they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Driver {
    /// The runtime itself: paths
    Cgroupfs,
    /// systemd: slices
    Systemd,
}

/// The name of a Pod's cgroup, as CRI wants it: a path, or a slice where systemd manages cgroups.
pub(crate) fn parent(uid: &str, driver: Driver) -> String {
    match driver {
        Driver::Cgroupfs => format!("/{PARENT}/pod{uid}"),
        Driver::Systemd => format!("bulkhead-play-pod{}.slice", uid.replace('-', "_")),
    }
}

/// Whether a name is one that systemd makes a cgroup of.
pub(crate) fn is_slice(parent: &str) -> bool {
    parent.ends_with(".slice")
}

/// The node's cgroup hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchies {
    /// One unified hierarchy.
    V2(PathBuf),
    /// One for each controller (or pair of them); a v2 hierarchy without controllers may stand beside.
    V1(Vec<PathBuf>),
}

fn hierarchies(root: &Path) -> Result<Hierarchies, HostError> {
    if root.join("cgroup.controllers").exists() {
        return Ok(Hierarchies::V2(root.to_owned()));
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(HostError::at("read", root))? {
        let path = entry.map_err(HostError::at("read", root))?.path();
        // Some names are links to others, such as cpu to cpu,cpuacct.
        if path.is_dir() && !path.is_symlink() {
            found.push(path);
        }
    }
    Ok(Hierarchies::V1(found))
}

/// Makes the Pod's cgroup in every hierarchy, with its limits.
///
/// The runtime would make it too, but while it is empty another Pod's removal could take their common parent away
/// under the runtime's hands.
pub(crate) fn create(uid: &str, limits: &PodLimits) -> Result<(), HostError> {
    create_in(Path::new(ROOT), uid, limits)
}

fn create_in(root: &Path, uid: &str, limits: &PodLimits) -> Result<(), HostError> {
    let pod = format!("{PARENT}/pod{uid}");
    match hierarchies(root)? {
        Hierarchies::V1(roots) => {
            for root in roots {
                made(&root.join(&pod))?;
            }
            limit_v1(root, &pod, limits)
        }
        Hierarchies::V2(root) => {
            let group = root.join(&pod);
            made(&group)?;
            limit_v2(&root, &group, limits)
        }
    }
}

fn limit_v1(root: &Path, pod: &str, limits: &PodLimits) -> Result<(), HostError> {
    if let Some(bytes) = limits.memory {
        set(&root.join("memory").join(pod), "memory.limit_in_bytes", bytes)?;
    }
    if let Some(quota) = limits.cpu_quota {
        let group = root.join("cpu").join(pod);
        set(&group, "cpu.cfs_period_us", CPU_PERIOD)?;
        set(&group, "cpu.cfs_quota_us", quota)?;
        set(&group, "cpu.shares", limits.cpu_shares)?;
    }
    Ok(())
}

fn limit_v2(root: &Path, group: &Path, limits: &PodLimits) -> Result<(), HostError> {
    if limits.memory.is_none() && limits.cpu_quota.is_none() {
        return Ok(());
    }
    for above in [root, &root.join(PARENT)] {
        set(above, "cgroup.subtree_control", "+cpu +memory")?;
    }
    if let Some(bytes) = limits.memory {
        set(group, "memory.max", bytes)?;
    }
    if let Some(quota) = limits.cpu_quota {
        set(group, "cpu.max", format!("{quota} {CPU_PERIOD}"))?;
        set(group, "cpu.weight", weight(limits.cpu_shares))?;
    }
    Ok(())
}

/// Shares (2 to 262144) as a weight (1 to 10000), by the kubelet's and runc's formula.
fn weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9999 / 262_142
}

/// Makes a group and its parent, which the removal of another Pod may take away in between.
fn made(group: &Path) -> Result<(), HostError> {
    let mut result = fs::create_dir_all(group);
    for _ in 0..CONTENDERS {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                result = fs::create_dir_all(group);
            }
            Ok(()) | Err(_) => break,
        }
    }
    result.map_err(HostError::at("create the cgroup", group))
}

fn set(group: &Path, file: &str, value: impl ToString) -> Result<(), HostError> {
    let path = group.join(file);
    fs::write(&path, value.to_string()).map_err(HostError::at("write", &path))
}

/// Removes the Pod's cgroup, and play's when it was the last.
///
/// Empty cgroups that the runtime left in it go too, as they do under the kubelet, but they are named: a runtime
/// should remove what it made. A cgroup with processes in it is an error.
pub(crate) async fn remove(uid: &str) -> Result<(), HostError> {
    let roots = match hierarchies(Path::new(ROOT))? {
        Hierarchies::V2(root) => vec![root],
        Hierarchies::V1(roots) => roots,
    };
    let started = Instant::now();
    let mut left = None;
    for root in roots {
        let parent = root.join(PARENT);
        let group = parent.join(format!("pod{uid}"));
        while !is_gone(&group)? {
            if started.elapsed() > COURTESY {
                left = remove_below(&group)?.or(left);
            }
            if started.elapsed() > PATIENCE {
                fs::remove_dir(&group).map_err(HostError::at("remove the cgroup", &group))?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        // Fails where other Pods are there, which is as it should be.
        let _others = fs::remove_dir(&parent);
    }
    if let Some(left) = left {
        eprintln!(
            "bulkhead: note: the runtime left cgroups behind, such as {}; removed",
            left.display()
        );
    }
    Ok(())
}

/// Tries to remove a cgroup; whether it is gone. One that is still in use is not an error.
fn is_gone(group: &Path) -> Result<bool, HostError> {
    match fs::remove_dir(group) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(true),
            io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty => Ok(false),
            kind => Err(HostError::at("remove the cgroup", group)(io::Error::from(kind))),
        },
    }
}

/// Removes the empty cgroups below one, the deepest first; names one of them.
fn remove_below(group: &Path) -> Result<Option<PathBuf>, HostError> {
    let mut removed = None;
    let Ok(entries) = fs::read_dir(group) else { return Ok(None) };
    for entry in entries {
        let path = entry.map_err(HostError::at("read", group))?.path();
        if path.is_dir() {
            removed = remove_below(&path)?.or(removed);
            if is_gone(&path)? {
                removed = Some(path);
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PodLimits =
        PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory: Some(4096) };

    fn read(root: &Path, file: &str) -> String {
        fs::read_to_string(root.join(file)).unwrap()
    }

    #[test]
    fn names() {
        assert_eq!(parent("a-b", Driver::Cgroupfs), "/bulkhead-play/poda-b");
        assert_eq!(parent("a-b", Driver::Systemd), "bulkhead-play-poda_b.slice");
    }

    #[test]
    fn weights() {
        assert_eq!([2, 512, 1024, 262_144].map(weight), [1, 20, 39, 10_000]);
    }

    #[test]
    fn limits_on_v1() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["memory", "cpu", "pids"] {
            fs::create_dir(root.path().join(controller)).unwrap();
        }
        create_in(root.path(), "u", &LIMITS).unwrap();
        for (file, value) in [
            ("memory/bulkhead-play/podu/memory.limit_in_bytes", "4096"),
            ("cpu/bulkhead-play/podu/cpu.cfs_period_us", "100000"),
            ("cpu/bulkhead-play/podu/cpu.cfs_quota_us", "50000"),
            ("cpu/bulkhead-play/podu/cpu.shares", "512"),
        ] {
            assert_eq!(read(root.path(), file), value, "{file}");
        }
        assert!(root.path().join("pids/bulkhead-play/podu").is_dir());
    }

    #[test]
    fn limits_on_v2() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        create_in(root.path(), "u", &LIMITS).unwrap();
        for (file, value) in [
            ("cgroup.subtree_control", "+cpu +memory"),
            ("bulkhead-play/cgroup.subtree_control", "+cpu +memory"),
            ("bulkhead-play/podu/memory.max", "4096"),
            ("bulkhead-play/podu/cpu.max", "50000 100000"),
            ("bulkhead-play/podu/cpu.weight", "20"),
        ] {
            assert_eq!(read(root.path(), file), value, "{file}");
        }
    }

    #[test]
    fn what_is_left_in_a_group_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("pod/sandbox/deep")).unwrap();
        let pod = root.path().join("pod");
        assert!(!is_gone(&pod).unwrap());
        assert_eq!(remove_below(&pod).unwrap(), Some(pod.join("sandbox")));
        assert!(is_gone(&pod).unwrap() && is_gone(&pod).unwrap());
    }

    #[test]
    fn no_limits_are_written_where_there_are_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("memory")).unwrap();
        let none = PodLimits { cpu_shares: 2, cpu_quota: None, memory: None };
        create_in(root.path(), "u", &none).unwrap();
        let group = root.path().join("memory/bulkhead-play/podu");
        assert_eq!(fs::read_dir(group).unwrap().count(), 0);
    }
}
