//! Volumes as a kubelet makes them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::case::{Case, cases};
use crate::bed::process::{Run, until};
use crate::client::pod::{Container, Pod, bind, shell};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![
    config_map_update_is_seen,
    sub_path,
    host_writes_are_seen,
    memory_volume,
    secret_volume,
];

/// Writes `files` as a kubelet does: into a folder of their own, to which `..data` is switched in
/// one step.
fn publish(volume: &Path, round: u32, files: &[(&str, &str)]) -> Result<()> {
    let fresh = format!("..round_{round}");
    std::fs::create_dir(volume.join(&fresh))?;
    for (name, text) in files {
        std::fs::write(volume.join(&fresh).join(name), text)?;
        let link = volume.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    symlink(&fresh, volume.join("..data_tmp"))?;
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    if round > 0 {
        std::fs::remove_dir_all(volume.join(format!("..round_{}", round - 1)))?;
    }
    Ok(())
}

fn config_map_update_is_seen(stage: &Stage) -> Result<()> {
    let volume = stage.folder()?;
    publish(&volume, 0, &[("key", "old\n"), ("other", "same\n")])?;
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    config.mounts = vec![bind(&volume, "/etc/config", true)];
    let container = pod.start("main", config)?;
    ensure!(container.out("cat /etc/config/key /etc/config/other")? == "old\nsame");
    for round in 1..4 {
        let text = format!("new {round}");
        publish(&volume, round, &[("key", &format!("{text}\n")), ("other", "same\n")])?;
        comes_to_hold(stage, &container, "/etc/config/key", &text)?;
        comes_to_hold(stage, &container, "/etc/config/other", "same")?;
    }
    ensure!(container.exec("echo no > /etc/config/key")?.exit_code != 0, "it may write");
    ensure!(container.exec("mount -o remount,rw /etc/config")?.exit_code != 0, "it may remount");
    Ok(())
}

/// A subPath is a folder or a file of a volume; the rest of the volume is not there.
fn sub_path(stage: &Stage) -> Result<()> {
    let volume = stage.folder()?;
    std::fs::create_dir(volume.join("part"))?;
    std::fs::write(volume.join("part/inside"), "inside\n")?;
    std::fs::write(volume.join("outside"), "outside\n")?;
    symlink("../outside", volume.join("part/up"))?;
    symlink("/etc/hostname", volume.join("part/absolute"))?;
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    config.mounts = vec![
        bind(&volume.join("part"), "/data", false),
        bind(&volume.join("outside"), "/data/mounted-file", true),
    ];
    let container = pod.start("main", config)?;
    ensure!(container.out("cat /data/inside /data/mounted-file")? == "inside\noutside");
    container.out("echo written > /data/new")?;
    ensure!(std::fs::read_to_string(volume.join("part/new"))? == "written\n");
    ensure!(container.exec("cat /data/up")?.exit_code != 0, "a link leads out of the subPath");
    ensure!(container.out("ls /data/..")?.contains("etc"), "/data/.. is not the container's root");
    ensure!(container.out("cat /data/absolute")? == "bed-pod", "a link leads to the host's file");
    Ok(())
}

/// What the host changes is seen, in size, in content and in name, and so is what it removes.
fn host_writes_are_seen(stage: &Stage) -> Result<()> {
    let folder = stage.folder()?;
    let file = folder.join("file");
    std::fs::write(&file, "1\n")?;
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    config.mounts = vec![bind(&folder, "/dir", false)];
    let container = pod.start("main", config)?;
    let seen = |what: &str, script: &str, wanted: &str| {
        until(what, Duration::from_secs(10), || {
            let done = container.exec(script)?;
            let text = String::from_utf8_lossy(&done.stdout).trim_end().to_owned();
            Ok((text == wanted).then_some(()))
        })
    };
    seen("the first content", "cat /dir/file", "1")?;
    std::fs::write(&file, "1\n2\n3\n")?;
    seen("a longer file", "cat /dir/file", "1\n2\n3")?;
    std::fs::write(folder.join("second"), "x")?;
    seen("a new file", "ls /dir", "file\nsecond")?;
    std::fs::remove_file(&file)?;
    seen("a removal", "ls /dir", "second")
}

/// A tmpfs on the host that is gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(dir: PathBuf, options: &str) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Run::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&dir).ok()?;
        Ok(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(e) = Run::new("umount").arg(&self.0).ok() {
            eprintln!("    clean-up of {}: {e:#}", self.0.display());
        }
    }
}

/// An emptyDir of medium Memory has the size that the host's tmpfs has, and is one for the Pod.
fn memory_volume(stage: &Stage) -> Result<()> {
    let dir = stage.folder()?.join("pods/uid/volumes/kubernetes.io~empty-dir/cache");
    let volume = Tmpfs::mount(dir, "size=16m")?;
    let pod = Pod::run(stage)?;
    let with = |script: &str| {
        let mut config = shell(script);
        config.mounts = vec![bind(&volume.0, "/cache", false)];
        config
    };
    let one = pod.start("one", with("sleep 1000"))?;
    let two = pod.start("two", with("sleep 1000"))?;
    let blocks = one.out("df -k /cache | tail -n 1 | awk '{print $2}'")?;
    ensure!(blocks == "16384", "the volume has {blocks} KiB");
    one.out("echo shared > /cache/word")?;
    ensure!(two.out("cat /cache/word")? == "shared", "the other container does not see it");
    let full = one.exec("head -c 20000000 /dev/zero > /cache/big")?;
    ensure!(full.exit_code != 0, "20 MB fit into 16 MiB");
    one.out("rm /cache/big")?;
    // A container that comes again finds what is there.
    stage.cri.stop(&two.id, 0)?;
    let three = pod.start("three", with("sleep 1000"))?;
    ensure!(three.out("cat /cache/word")? == "shared", "a later container does not see it");
    Ok(())
}

/// A Secret is a tmpfs too, but one that the host writes.
fn secret_volume(stage: &Stage) -> Result<()> {
    let dir = stage.folder()?.join("pods/uid/volumes/kubernetes.io~secret/token");
    let volume = Tmpfs::mount(dir, "size=1m,mode=0755")?;
    publish(&volume.0, 0, &[("token", "first\n")])?;
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    config.mounts = vec![bind(&volume.0, "/secret", true)];
    let container = pod.start("main", config)?;
    ensure!(container.out("cat /secret/token")? == "first");
    publish(&volume.0, 1, &[("token", "second\n")])?;
    comes_to_hold(stage, &container, "/secret/token", "second")
}

/// Waits until the file holds `text`. A guest remembers names for a second, so that its old one may
/// lead to a directory that the update has removed.
fn comes_to_hold(stage: &Stage, container: &Container<'_>, path: &str, text: &str) -> Result<()> {
    until(&format!("{path} holds {text:?}"), Duration::from_secs(10), || {
        let seen = container.exec(&format!("cat {path}"))?;
        ensure!(seen.exit_code == 0 || stage.handler.is_vm(), "{path} is gone");
        Ok((String::from_utf8_lossy(&seen.stdout).trim_end() == text).then_some(()))
    })
}
