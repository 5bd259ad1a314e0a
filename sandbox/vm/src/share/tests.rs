//! The share as it really is: mounts, and both virtiofsd programs where they are installed.
//! `BULKHEAD_VIRTIOFSD` names more of them, separated by colons.

use std::fs;
use std::os::unix::net::UnixStream;

use sandbox_core::host::{Bind, Propagation, ReadOnly, RealHost};
use sandbox_core::{Id, RootfsMount};

use super::*;

const PRIVATE: Bind =
    Bind { recursive: true, read_only: ReadOnly::No, propagation: Propagation::Private };

/// A directory of its own whose share is taken down even when the test fails.
struct Scratch {
    dir: tempfile::TempDir,
    host: Arc<RealHost>,
}

impl Scratch {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("share-").tempdir().unwrap();
        Some(Self { dir, host: Arc::new(RealHost::new().unwrap()) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tree(&self) -> Tree {
        Tree::create(self.host.clone(), self.dir.path()).unwrap()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn mounted(&self) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = self.dir.path().to_str().unwrap().to_owned() + "/";
        table.lines().filter(|line| line.split(' ').nth(4).unwrap().starts_with(&root)).count()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for mark in leftover::find(&self.path("share")).unwrap_or_default() {
                mark.kill();
            }
            let _ = Tree::at(self.host.clone(), self.dir.path()).destroy();
        }
    }
}

fn id(name: &str) -> Id {
    Id::new(name).unwrap()
}

fn path_mount(name: &str, source: &Path, how: Bind) -> SharedMount {
    SharedMount { name: name.into(), what: Shared::Path { source: source.to_owned(), how } }
}

fn overlay(scratch: &Scratch) -> SharedMount {
    scratch.write("layer/etc/os", "guest");
    for name in ["upper", "work"] {
        fs::create_dir_all(scratch.path(name)).unwrap();
    }
    let option = |key: &str, dir: &str| format!("{key}={}", scratch.path(dir).display());
    let options =
        vec![option("lowerdir", "layer"), option("upperdir", "upper"), option("workdir", "work")];
    let mount = RootfsMount { kind: "overlay".into(), source: "overlay".into(), options };
    SharedMount { name: "rootfs".into(), what: Shared::Rootfs(vec![mount]) }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen in 10 s");
}

/// Every virtiofsd of this machine.
async fn programs(scratch: &Scratch) -> Vec<Virtiofsd> {
    let more = std::env::var("BULKHEAD_VIRTIOFSD").unwrap_or_default();
    let known = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    let mut found = Vec::new();
    for path in more.split(':').chain(known).filter(|path| Path::new(path).is_file()) {
        found.push(Virtiofsd::find(&*scratch.host, Some(Path::new(path))).await.unwrap());
    }
    if found.is_empty() {
        eprintln!("skipped: no virtiofsd is installed, and BULKHEAD_VIRTIOFSD names none");
    }
    found
}

#[tokio::test]
async fn mounts_are_made_and_undone_from_names_alone() {
    let Some(scratch) = Scratch::new() else { return };
    let tree = scratch.tree();
    let file = scratch.write("volumes/hosts", "127.0.0.1 x");
    scratch.write("volumes/data/f", "data");
    let data = scratch.path("volumes/data");
    let read_only = Bind { read_only: ReadOnly::All, ..PRIVATE };
    let mounts = vec![
        overlay(&scratch),
        path_mount("m0", &file, PRIVATE),
        path_mount("m1", &data, read_only),
    ];
    tree.mount(&id("c1"), mounts).await.unwrap();
    let served = |name: &str| tree.served().join("c1").join(name);
    assert_eq!(fs::read_to_string(served("rootfs/etc/os")).unwrap(), "guest");
    fs::write(served("rootfs/new"), "x").unwrap();
    assert!(scratch.path("upper/new").exists());
    assert_eq!(fs::read_to_string(served("m0")).unwrap(), "127.0.0.1 x");
    let errno = |error: io::Error| error.raw_os_error().unwrap();
    assert_eq!(errno(fs::write(served("m1/g"), "").unwrap_err()), libc::EROFS);
    // Around the mounts the guest can write nothing, not even a link where the next mount goes.
    assert_eq!(errno(fs::create_dir(tree.served().join("c2")).unwrap_err()), libc::EROFS);
    assert_eq!(errno(fs::write(served("m9"), "").unwrap_err()), libc::EROFS);

    let again = tree.mount(&id("c1"), Vec::new()).await.unwrap_err();
    assert!(again.to_string().starts_with("making "), "{again}");
    assert!(served("m0").exists(), "a refused second mount must not take the first one down");

    let stranger = Tree::at(scratch.host.clone(), scratch.dir.path());
    stranger.remove(&id("c1")).unwrap();
    stranger.remove(&id("c1")).unwrap();
    assert!(!tree.served().join("c1").exists());
    assert_eq!(fs::read_to_string(data.join("f")).unwrap(), "data");
    stranger.destroy().unwrap();
    stranger.destroy().unwrap();
    assert_eq!(scratch.mounted(), 0);
    assert!(!tree.served().exists());
}

#[tokio::test]
async fn a_failed_mount_leaves_nothing_and_names_the_source() {
    let Some(scratch) = Scratch::new() else { return };
    let tree = scratch.tree();
    let mounts = vec![overlay(&scratch), path_mount("m0", Path::new("/no/such/volume"), PRIVATE)];
    let error = tree.mount(&id("c1"), mounts).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/volume"), "{error}");
    assert_eq!(scratch.mounted(), 1, "the share itself");
    assert!(!tree.served().join("c1").exists());
    // Data below a mount point's directory is never removed.
    let stray = scratch.write("backing/c3/m0", "somebody's");
    assert!(tree.destroy().is_err());
    assert!(stray.exists());
    fs::remove_file(stray).unwrap();
    tree.destroy().unwrap();
}

#[tokio::test]
async fn virtiofsd_sees_what_is_mounted_before_and_after_it_starts() {
    let Some(scratch) = Scratch::new() else { return };
    let file = scratch.write("volumes/hosts", "old");
    for program in programs(&scratch).await {
        let tree = scratch.tree();
        tree.mount(&id("early"), vec![overlay(&scratch)]).await.unwrap();
        let share = Share::start(&*scratch.host, &program, &tree).unwrap();
        // QEMU's enters its sandbox once somebody has connected.
        let client = UnixStream::connect(share.socket()).unwrap();
        until("a child in its sandbox", || share.processes().len() == 2).await;
        let root = PathBuf::from(format!("/proc/{}/root", share.processes()[1].pid));
        until("pivoting", || root.join("early/rootfs/etc/os").exists()).await;
        tree.mount(&id("late"), vec![path_mount("m0", &file, PRIVATE)]).await.unwrap();
        assert_eq!(fs::read_to_string(root.join("late/m0")).unwrap(), "old");
        tree.remove(&id("late")).unwrap();
        assert!(!root.join("late").exists(), "taken down there as well");
        assert!(!root.join("etc").exists(), "nothing else of the host is in sight");

        share.stop().await.unwrap();
        share.stop().await.unwrap();
        assert_eq!(share.exited().await.status, Exit::KILLED);
        assert!(leftover::find(tree.served()).unwrap().is_empty(), "{program:?}");
        assert!(!share.socket().exists());
        tree.destroy().unwrap();
        drop(client);
    }
    assert_eq!(scratch.mounted(), 0);
}

#[tokio::test]
async fn a_death_is_told_and_takes_the_child_along() {
    let Some(scratch) = Scratch::new() else { return };
    for program in programs(&scratch).await {
        let tree = scratch.tree();
        let share = Share::start(&*scratch.host, &program, &tree).unwrap();
        let client = UnixStream::connect(share.socket()).unwrap();
        until("a child in its sandbox", || share.processes().len() == 2).await;
        let [parent, child] = share.processes()[..] else { unreachable!("two, as seen above") };
        assert!(parent.kill());
        let soon = Duration::from_secs(10);
        tokio::time::timeout(soon, share.exited()).await.expect("the death is told");
        until("the child's end", || !child.alive()).await;
        purge(scratch.host.clone(), scratch.dir.path()).await.unwrap();
        purge(scratch.host.clone(), scratch.dir.path()).await.unwrap();
        drop(client);
    }
    assert_eq!(scratch.mounted(), 0);
}

#[tokio::test]
async fn what_it_says_when_it_fails_is_at_hand() {
    let Some(scratch) = Scratch::new() else { return };
    for program in programs(&scratch).await {
        let tree = scratch.tree();
        let missing = Tree::at(scratch.host.clone(), &scratch.path("nowhere"));
        fs::create_dir_all(missing.dir()).unwrap();
        let share = Share::start(&*scratch.host, &program, &missing).unwrap();
        let client = UnixStream::connect(share.socket());
        let soon = Duration::from_secs(10);
        let exit = tokio::time::timeout(soon, share.exited()).await.expect("an end");
        assert_ne!(exit.status, 0);
        until("its last words", || !share.log_tail().is_empty()).await;
        eprintln!("{}: {}", program.program().display(), share.log_tail());
        share.stop().await.unwrap();
        tree.destroy().unwrap();
        drop(client);
    }
}
