//! What a Pod may leak on a machine: processes, mounts, cgroups, files and more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sandbox_host::mounts::{Mount, MountTable};

use super::containerd::Node;
use super::place::Place;
use super::process::{Run, patience};
use super::version::Version;

/// How long clean-up may go on after the call that removed a Pod has returned.
const SETTLE: Duration = Duration::from_secs(6);

/// What is kept for later sandboxes: the newest runsc's empty network namespace, and records about
/// this host and the guest image.
const KEPT: [&str; 2] = ["/null-netns", "/known"];

/// Everything that belongs to a bed at one moment, one line each, sorted by kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces(BTreeMap<&'static str, BTreeSet<String>>);

impl Traces {
    /// What there is of the bed of `node` now.
    pub(crate) fn of(node: &Node) -> Self {
        let place = node.place();
        let mut kinds = BTreeMap::new();
        let daemon = node.program().display().to_string();
        let is_daemon = |line: &String| line.split(' ').nth(1) == Some(daemon.as_str());
        let running = processes(place).into_values().filter(|line| !is_daemon(line));
        kinds.insert("process", running.collect());
        kinds.insert("mount", mounts(place));
        kinds.insert("mount elsewhere", mounts_elsewhere(place));
        // The same group in several hierarchies counts once.
        let below = |dir: PathBuf| {
            Some(dir.display().to_string().split_once(&place.cgroup())?.1.to_owned())
        };
        let groups = cgroups(place).into_iter().filter_map(below);
        kinds.insert("cgroup", groups.filter(|dir| !dir.is_empty()).collect());
        let bridges = Version::ALL.map(|version| place.bridge(version.short()));
        let links = links(place).into_iter().filter(|link| !bridges.contains(link));
        kinds.insert("link", links.collect());
        kinds.insert("nat chain", nat_chains(place));
        kinds.insert("table", tables(place));
        kinds.insert("file", state_files(node));
        kinds.insert("dead socket", dead_sockets(&node.shim_sockets()));
        kinds.insert(
            "address",
            files_below(&node.cni().join("ipam"), |name| name.starts_with("10.")),
        );
        kinds.insert("/dev/shm", entries(Path::new("/dev/shm")));
        kinds.insert("SysV object", sysv());
        for found in kinds.values_mut() {
            let is_kept = |item: &str| {
                KEPT.iter().any(|kept| item.ends_with(kept) || item.contains(&format!("{kept}/")))
            };
            found.retain(|item: &String| !is_kept(item));
        }
        Self(kinds)
    }

    /// What is in `self` and not in `before`, as readable lines.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, now) in &self.0 {
            let then = before.0.get(kind);
            let new: Vec<_> =
                now.iter().filter(|item| then.is_none_or(|then| !then.contains(*item))).collect();
            // The contents of a listed folder are not listed.
            let inside = |item: &str| new.iter().any(|top| item.starts_with(&format!("{top}/")));
            let tops = new.iter().filter(|item| !inside(item));
            lines.extend(tops.map(|item| format!("{kind}: {item}")));
        }
        lines
    }

    /// Fails with a list of what is there now and was not `before`; waits for clean-up that goes on
    /// in the background.
    pub(crate) fn compare(node: &Node, before: &Self) -> Result<()> {
        let settle = patience(SETTLE);
        let end = Instant::now() + settle;
        loop {
            let left = Self::of(node).beyond(before);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("leaked, {settle:?} after the case:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Processes of the bed, containerd included: those whose command line, working folder, root,
/// program or root file system name it, or that are in its cgroups.
pub(crate) fn processes(place: &Place) -> BTreeMap<i32, String> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = BTreeMap::new();
    for pid in entries(Path::new("/proc")).iter().filter_map(|name| name.parse::<i32>().ok()) {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(proc.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let link = |name: &str| fs::read_link(proc.join(name)).unwrap_or_default();
        let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let speaks = place.is_in(&line)
            || place.is_in(&text("cgroup"))
            || place.is_in(&root_layers(pid.unsigned_abs()))
            || ["cwd", "root", "exe"].iter().any(|l| place.is_in(&link(l).to_string_lossy()));
        if pid != own && speaks && !is_bystander(&line) && !is_zombie(&proc) {
            found.insert(pid, format!("{pid} {}", line.trim()));
        }
    }
    found
}

/// What the process's root file system is made of: the directory that is bound there, or the
/// options of an overlay, which name its layers. Empty when the process has exited.
fn root_layers(pid: u32) -> String {
    MountTable::of(pid).map(|table| layers_of(&table)).unwrap_or_default()
}

fn layers_of(table: &MountTable) -> String {
    let root = table.at(Path::new("/"));
    root.map(|root| format!("{} {:?}", root.root.display(), root.options)).unwrap_or_default()
}

/// The test bed's own programs name the bed too.
fn is_bystander(line: &str) -> bool {
    let program = line.split(' ').next().unwrap_or_default();
    program.ends_with("bulkhead-testbed")
}

/// A zombie holds no resources; its parent or init reaps it.
fn is_zombie(proc: &Path) -> bool {
    let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// Mount points of the bed in this mount namespace.
pub(crate) fn mounts(place: &Place) -> BTreeSet<String> {
    points(place, MountTable::current())
}

/// The bed's mount points in a table; none where there is no table, as its process has exited.
fn points(place: &Place, table: std::io::Result<MountTable>) -> BTreeSet<String> {
    let Ok(table) = table else { return BTreeSet::new() };
    let points = table.iter().map(|mount| mount.point.display().to_string());
    points.filter(|point| place.is_in(point)).collect()
}

/// Mount points of the bed in the other mount namespaces that its processes have.
fn mounts_elsewhere(place: &Place) -> BTreeSet<String> {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut looked_at = BTreeSet::from([space("self")]);
    let mut found = BTreeSet::new();
    for pid in processes(place).into_keys() {
        let here = space(&pid.to_string());
        if !looked_at.insert(here.clone()) {
            continue;
        }
        let name = here.map(|path| path.display().to_string()).unwrap_or_default();
        let points = points(place, MountTable::of(pid.unsigned_abs()));
        found.extend(points.into_iter().map(|point| format!("{name} {point}")));
    }
    found
}

/// Folders of the bed in every cgroup hierarchy.
pub(crate) fn cgroups(place: &Place) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in cgroup_roots() {
        collect_dirs(&root.join(place.cgroup().trim_start_matches('/')), &mut found);
    }
    found
}

/// Mount points of cgroup hierarchies, v1 and v2.
pub(crate) fn cgroup_roots() -> Vec<PathBuf> {
    let Ok(table) = MountTable::current() else { return Vec::new() };
    let is_cgroup = |mount: &Mount<'_>| mount.kind == "cgroup" || mount.kind == "cgroup2";
    table.iter().filter(is_cgroup).map(|mount| mount.point.into_owned()).collect()
}

fn collect_dirs(dir: &Path, found: &mut Vec<PathBuf>) {
    if !dir.is_dir() {
        return;
    }
    found.push(dir.to_owned());
    for name in entries(dir) {
        collect_dirs(&dir.join(name), found);
    }
}

/// Bridges of the bed and what is attached to them.
pub(crate) fn links(place: &Place) -> Vec<String> {
    let Ok(text) = Run::new("ip").args(["-o", "link", "show"]).ok() else { return Vec::new() };
    let bridge = place.bridge("");
    let names = text.lines().filter(|line| line.contains(&bridge));
    let names = names.filter_map(|line| line.split(": ").nth(1));
    names.map(|name| name.split('@').next().unwrap_or(name).to_owned()).collect()
}

/// The bed's nftables tables of the netdev family.
pub(crate) fn tables(place: &Place) -> BTreeSet<String> {
    let text = Run::new("nft").args(["list", "tables", "netdev"]).ok().unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(2));
    names.filter(|name| place.is_in(name)).map(str::to_owned).collect()
}

fn nat_chains(place: &Place) -> BTreeSet<String> {
    let saved = Run::new("iptables-save").args(["-t", "nat"]).ok().unwrap_or_default();
    chains(&saved, place)
}

/// The names of the chains in `saved` (the form of iptables-save) that CNI made for the bed.
pub(crate) fn chains(saved: &str, place: &Place) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in saved.lines().filter(|line| line.starts_with("-A") && place.is_in(line)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let target = words.iter().position(|w| *w == "-j").and_then(|at| words.get(at + 1));
        let names = words.get(1).into_iter().chain(target);
        let private = |name: &&&str| name.starts_with("CNI-") || name.starts_with("CNI-DN-");
        let names = names.filter(private).filter(|name| !SHARED_CHAINS.contains(name));
        found.extend(names.map(|name| (*name).to_owned()));
    }
    found
}

/// Chains that the portmap plugin shares among all networks.
const SHARED_CHAINS: [&str; 3] = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"];

/// Bundles, sandbox folders, network namespaces, runsc's state, VMs' folders.
fn state_files(node: &Node) -> BTreeSet<String> {
    let run = node.run();
    let mut found = BTreeSet::new();
    for namespace in ["k8s.io", super::containerd::NAMESPACE] {
        found.extend(paths_in(&node.bundles(namespace)));
        let work = node.lib().join("root/io.containerd.runtime.v2.task").join(namespace);
        found.extend(paths_in(&work));
    }
    for below in ["state/io.containerd.grpc.v1.cri/sandboxes", "state/netns"] {
        found.extend(paths_in(&run.join(below)));
    }
    found.extend(paths_in(&run.join("state/io.containerd.grpc.v1.cri/containers")));
    found.extend(files_below(&node.runsc_root(), |_| true));
    // Each VM has a folder in its namespace's.
    found.extend(files_below(&node.vm_root(), |_| true));
    found.extend(paths_in(&node.vm_root()).iter().flat_map(|dir| paths_in(Path::new(dir))));
    found
}

/// The sockets whose file exists though no process listens.
fn dead_sockets(sockets: &BTreeSet<String>) -> BTreeSet<String> {
    let live = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let live: BTreeSet<&str> =
        live.lines().filter_map(|line| line.split(' ').next_back()).collect();
    let dead = |path: &&String| Path::new(path).exists() && !live.contains(path.as_str());
    sockets.iter().filter(dead).cloned().collect()
}

fn sysv() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in ["shm", "sem", "msg"] {
        let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        let ids = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
        found.extend(ids.map(|id| format!("{kind} {id}")));
    }
    found
}

fn entries(dir: &Path) -> BTreeSet<String> {
    let Ok(read) = fs::read_dir(dir) else { return BTreeSet::new() };
    read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn paths_in(dir: &Path) -> BTreeSet<String> {
    entries(dir).iter().map(|name| dir.join(name).display().to_string()).collect()
}

fn files_below(dir: &Path, wanted: fn(&str) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in entries(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            found.extend(files_below(&path, wanted));
        } else if wanted(&name) {
            found.insert(path.display().to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::process::until;
    use super::*;

    #[test]
    fn finds_the_chains_of_one_bed_only() {
        let place = Place::named("abcd12").unwrap();
        let name = place.network("17");
        let saved = format!(
            ":CNI-1 - [0:0]\n-A POSTROUTING -s 10.64.0.2/32 -m comment --comment \"name: \\\"{name}\\\" \
             id: \\\"x\\\"\" -j CNI-1\n-A CNI-1 -d 10.64.0.0/24 -m comment --comment \"name: \
             \\\"{name}\\\"\" -j ACCEPT\n-A POSTROUTING -m comment --comment \"name: \\\"other\\\"\" \
             -j CNI-2\n-A CNI-HOSTPORT-DNAT -m comment --comment \"dnat name: \\\"{name}\\\"\" -j CNI-DN-3\n"
        );
        let expected: BTreeSet<String> = ["CNI-1", "CNI-DN-3"].map(str::to_owned).into();
        assert_eq!(chains(&saved, &place), expected);
    }

    #[test]
    fn names_what_is_new_and_only_that() {
        let set = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect();
        let before = Traces([("mount", set(&["/a"]))].into());
        let after = Traces([("mount", set(&["/a", "/b"])), ("process", set(&["7 runsc"]))].into());
        assert_eq!(after.beyond(&before), ["mount: /b", "process: 7 runsc"]);
        let folder = Traces([("cgroup", set(&["/p", "/p/c", "/pq"]))].into());
        assert_eq!(folder.beyond(&before), ["cgroup: /p", "cgroup: /pq"]);
        assert!(before.beyond(&after).is_empty());
    }

    #[test]
    fn a_container_is_known_by_its_layers() {
        let place = Place::named("abcd12").unwrap();
        let layers = place.lib().join("16/root/snapshots/1/fs");
        let root = format!("75 49 0:40 / / ro - overlay overlay rw,lowerdir={}", layers.display());
        let other = "76 75 0:43 / /proc rw - proc proc rw";
        let of = |table: &str| layers_of(&MountTable::parse(table).unwrap());
        assert!(place.is_in(&of(&format!("{root}\n{other}\n"))));
        // A machine's own table names every bed that has mounts.
        let host =
            format!("49 1 254:0 / / rw - ext4 /dev/vda rw\n{}", root.replace(" / / ", " / /x "));
        assert!(!place.is_in(&of(&host)));
        assert_eq!(of(""), "");
    }

    #[test]
    fn a_process_of_the_bed_is_seen() {
        let place = Place::named("zz99zz").unwrap();
        let dir = place.run();
        let mut child = Run::new("sh")
            .args(["-c", "sleep 30; true"])
            .arg(&dir)
            .spawn(
                std::process::Stdio::null(),
                std::process::Stdio::null(),
                std::process::Stdio::null(),
            )
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // A program runs a moment before the kernel shows its arguments.
        let seen = until("the process is seen", Duration::from_secs(10), || {
            Ok(processes(&place).contains_key(&pid).then_some(()))
        });
        let _ = child.kill();
        let _ = child.wait();
        seen.unwrap();
    }
}
