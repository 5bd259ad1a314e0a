//! Removing a bed by its id alone, so that the leftovers of an interrupted run are removed too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use nix::mount::MntFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place::Place;
use super::process::Run;
use super::traces;

/// Kills, unmounts and removes everything of the bed at `place`. Runs every step even if one
/// fails; returns what could not be removed.
pub(crate) fn sweep(place: &Place) -> Vec<String> {
    let mut left = Vec::new();
    kill_processes(place);
    for target in mounts(place) {
        #[expect(clippy::disallowed_methods, reason = "the bed's one door to mounts")]
        let unmounted = nix::mount::umount2(&target, MntFlags::MNT_DETACH);
        if let Err(e) = unmounted {
            left.push(format!("mount {}: {e}", target.display()));
        }
    }
    for dir in cgroups(place) {
        if let Err(e) = fs::remove_dir(&dir) {
            left.push(format!("cgroup {}: {e}", dir.display()));
        }
    }
    if let Err(e) = rules(place) {
        left.push(format!("nat rules: {e:#}"));
    }
    for table in traces::tables(place) {
        if let Err(e) = Run::new("nft").args(["delete", "table", "netdev", &table]).ok() {
            left.push(format!("table {table}: {e:#}"));
        }
    }
    for link in traces::links(place) {
        if let Err(e) = Run::new("ip").args(["link", "delete", &link]).ok() {
            left.push(format!("link {link}: {e:#}"));
        }
    }
    for dir in [place.run(), place.lib()] {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                left.push(format!("{}: {e}", dir.display()));
            }
            _ => {}
        }
    }
    left
}

/// Two rounds: a shim may have started a process just before it was killed.
fn kill_processes(place: &Place) {
    for _ in 0..20 {
        let pids: BTreeSet<i32> = traces::processes(place).into_keys().collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Deepest first.
fn mounts(place: &Place) -> Vec<PathBuf> {
    let mut targets: Vec<PathBuf> = traces::mounts(place).into_iter().map(PathBuf::from).collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.as_os_str().len()));
    targets
}

/// Deepest first.
fn cgroups(place: &Place) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = traces::cgroups(place);
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    dirs
}

/// Deletes the rules that jump to the bed's chains, then the chains.
fn rules(place: &Place) -> Result<()> {
    let saved = Run::new("iptables-save").args(["-t", "nat"]).ok()?;
    let ours = traces::chains(&saved, place);
    if ours.is_empty() {
        return Ok(());
    }
    let jumps = |line: &&str| {
        let target = line.split_whitespace().skip_while(|w| *w != "-j").nth(1);
        line.starts_with("-A") && target.is_some_and(|t| ours.contains(t))
    };
    let mut script = String::from("*nat\n");
    for line in saved.lines().filter(jumps) {
        script.push_str(&format!("-D{}\n", &line[2..]));
    }
    for chain in &ours {
        script.push_str(&format!("-F {chain}\n-X {chain}\n"));
    }
    script.push_str("COMMIT\n");
    Run::new("iptables-restore").arg("--noflush").stdin(script).ok()?;
    Ok(())
}

/// Every bed that left a folder on this machine.
pub(crate) fn beds() -> Vec<Place> {
    let mut ids = BTreeSet::new();
    for (dir, prefix) in [("/run", "bh-"), ("/var/lib", "bulkhead-bed-")] {
        let Ok(entries) = fs::read_dir(Path::new(dir)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            ids.extend(name.strip_prefix(prefix).map(str::to_owned));
        }
    }
    ids.iter().filter_map(|id| Place::named(id).ok()).collect()
}
