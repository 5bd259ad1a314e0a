//! The share with real mounts and each virtiofsd that is installed.
//! `BULKHEAD_VIRTIOFSD` names more of them, separated by colons.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::{Exit, Id, RootfsMount};
use sandbox_host::{Bind, ExitWatch, Host, ProcessRef, Propagation, ReadOnly, RealHost};

use crate::leftover;
use crate::program::Virtiofsd;
use crate::share::{Share, purge};
use crate::tree::{Shared, SharedMount, Tree, Volume};
use crate::volumes::Volumes;

const PRIVATE: Bind =
    Bind { recursive: true, read_only: ReadOnly::No, propagation: Propagation::Private };

/// A directory of its own whose share is unmounted even when the test fails.
struct Scratch {
    dir: tempfile::TempDir,
    host: Arc<RealHost>,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("share-").tempdir().unwrap();
        Self { dir, host: Arc::new(RealHost::new().unwrap()) }
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
        let table = sandbox_host::mounts::MountTable::current().unwrap();
        let root = self.dir.path();
        table.below(root).filter(|mount| mount.point != root).count()
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

/// The process that serves and what it sees as `/`, once it is in its sandbox: where the share
/// holds `marker`. The Rust one has another child before, for a moment.
async fn sandboxed(share: &Share, marker: &str) -> (ProcessRef, PathBuf) {
    let root = |mark: ProcessRef| (mark, PathBuf::from(format!("/proc/{}/root", mark.pid)));
    let find = || {
        let children = share.processes().into_iter().skip(1).map(root);
        children.into_iter().find(|(_, root)| root.join(marker).exists())
    };
    until("entering the sandbox", || find().is_some()).await;
    find().unwrap()
}

/// Every virtiofsd that is installed.
async fn programs(scratch: &Scratch) -> Vec<Virtiofsd> {
    let more = std::env::var("BULKHEAD_VIRTIOFSD").unwrap_or_default();
    let known = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    let mut found = Vec::new();
    for path in more.split(':').chain(known).filter(|path| Path::new(path).is_file()) {
        let cache = scratch.path("cache");
        found.push(Virtiofsd::find(&*scratch.host, Some(Path::new(path)), &cache).await.unwrap());
    }
    assert!(!found.is_empty(), "a virtiofsd at one of {known:?}");
    found
}

#[tokio::test]
#[ignore = "needs mount"]
async fn a_volume_is_mounted_once_for_all_containers() {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    scratch.write("volumes/data/f", "data");
    let file = scratch.write("volumes/hosts", "127.0.0.1 x");
    let volume = |name: &str, source: &Path| Volume {
        name: name.into(),
        source: source.to_owned(),
        how: PRIVATE,
    };
    let (data, mut volumes) = (scratch.path("volumes/data"), Volumes::default());
    let before = scratch.mounted();
    let (one, two) = (id("c1"), id("c2"));
    assert_eq!(volumes.acquire(&tree, &one, volume("v1", &data)).await.unwrap(), "v1");
    assert_eq!(volumes.acquire(&tree, &two, volume("v2", &data)).await.unwrap(), "v1");
    assert_eq!(volumes.acquire(&tree, &two, volume("v3", &file)).await.unwrap(), "v3");
    assert_eq!(scratch.mounted(), before + 2);
    let served = |name: &str| tree.served().join(".volumes").join(name);
    assert_eq!(fs::read_to_string(served("v1/f")).unwrap(), "data");
    // Another file at the same path is another volume.
    fs::rename(scratch.write("volumes/new", "127.0.0.1 y"), &file).unwrap();
    assert_eq!(volumes.acquire(&tree, &one, volume("v4", &file)).await.unwrap(), "v4");
    assert_eq!(fs::read_to_string(served("v4")).unwrap(), "127.0.0.1 y");
    volumes.release(&tree, &one).unwrap();
    assert!(served("v1/f").exists() && !served("v4").exists(), "one of two users is gone");
    volumes.release(&tree, &one).unwrap();
    volumes.release(&tree, &two).unwrap();
    assert_eq!(scratch.mounted(), before);
    let gone = volumes.acquire(&tree, &one, volume("v5", Path::new("/no/such/volume"))).await;
    assert!(gone.unwrap_err().to_string().contains("/no/such/volume"));
    assert!(volumes.acquire(&tree, &one, volume("v6", &data)).await.is_ok());
    tree.destroy().unwrap();
    assert_eq!(scratch.mounted(), 0);
}

#[tokio::test]
#[ignore = "needs mount"]
async fn mounts_are_made_and_undone_from_names_alone() {
    let scratch = Scratch::new();
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
    assert!(served("m0").exists(), "a failed second mount must not undo the first one");

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
#[ignore = "needs mount"]
async fn a_failed_mount_leaves_nothing_and_names_the_source() {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    let mounts = vec![overlay(&scratch), path_mount("m0", Path::new("/no/such/volume"), PRIVATE)];
    let error = tree.mount(&id("c1"), mounts).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/volume"), "{error}");
    assert_eq!(scratch.mounted(), 1, "the share itself");
    assert!(!tree.served().join("c1").exists());
    // Data below a mount point's directory is never removed.
    let stray = scratch.write("backing/c3/m0", "a user's");
    assert!(tree.destroy().is_err());
    assert!(stray.exists());
    fs::remove_file(stray).unwrap();
    tree.destroy().unwrap();
}

#[tokio::test]
#[ignore = "needs mount, program:virtiofsd"]
async fn virtiofsd_sees_what_is_mounted_before_and_after_it_starts() {
    let scratch = Scratch::new();
    let file = scratch.write("volumes/hosts", "old");
    for program in programs(&scratch).await {
        let tree = scratch.tree();
        tree.mount(&id("early"), vec![overlay(&scratch)]).await.unwrap();
        let share = Share::start(&*scratch.host, &program, &tree, None).unwrap();
        // QEMU's enters its sandbox once a client has connected.
        let client = UnixStream::connect(share.socket()).unwrap();
        let (_, root) = sandboxed(&share, "early/rootfs/etc/os").await;
        tree.mount(&id("late"), vec![path_mount("m0", &file, PRIVATE)]).await.unwrap();
        assert_eq!(fs::read_to_string(root.join("late/m0")).unwrap(), "old");
        tree.remove(&id("late")).unwrap();
        assert!(!root.join("late").exists(), "unmounted there as well");
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
#[ignore = "needs mount, program:virtiofsd"]
async fn an_exit_is_reported_and_kills_the_child() {
    let scratch = Scratch::new();
    for program in programs(&scratch).await {
        let tree = scratch.tree();
        tree.mount(&id("c1"), vec![overlay(&scratch)]).await.unwrap();
        let share = Share::start(&*scratch.host, &program, &tree, None).unwrap();
        let client = UnixStream::connect(share.socket()).unwrap();
        let (child, _) = sandboxed(&share, "c1/rootfs/etc/os").await;
        assert!(share.processes()[0].kill());
        let soon = Duration::from_secs(10);
        tokio::time::timeout(soon, share.exited()).await.expect("virtiofsd exits");
        until("the child's exit", || !child.alive()).await;
        purge(scratch.host.clone(), scratch.dir.path()).await.unwrap();
        purge(scratch.host.clone(), scratch.dir.path()).await.unwrap();
        drop(client);
    }
    assert_eq!(scratch.mounted(), 0);
}

#[tokio::test]
#[ignore = "needs mount, program:virtiofsd"]
async fn the_log_of_a_failure_is_available() {
    let scratch = Scratch::new();
    for program in programs(&scratch).await {
        let tree = scratch.tree();
        let missing = Tree::at(scratch.host.clone(), &scratch.path("nowhere"));
        fs::create_dir_all(missing.dir()).unwrap();
        let share = Share::start(&*scratch.host, &program, &missing, None).unwrap();
        let client = UnixStream::connect(share.socket());
        let soon = Duration::from_secs(10);
        let exit = tokio::time::timeout(soon, share.exited()).await.expect("virtiofsd exits");
        assert_ne!(exit.status, 0);
        until("its log", || !share.log_tail().is_empty()).await;
        share.stop().await.unwrap();
        tree.destroy().unwrap();
        drop(client);
    }
}

#[tokio::test]
#[ignore = "needs mount, program:qemu-system-x86_64, program:busybox, program:cpio, env:BULKHEAD_TEST_KERNEL"]
async fn only_a_slave_volume_follows_its_host() {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    let file = scratch.write("other/f", "later");
    let volume = scratch.path("volume");
    fs::create_dir_all(volume.join("disk")).unwrap();
    let shared = Bind { propagation: Propagation::Shared, ..PRIVATE };
    scratch.host.bind(&volume, &volume, shared).unwrap();
    let slave = Bind { propagation: Propagation::Slave, ..PRIVATE };
    let mounts = vec![path_mount("m0", &volume, slave), path_mount("m1", &volume, PRIVATE)];
    tree.mount(&id("c1"), mounts).await.unwrap();
    scratch.host.bind(file.parent().unwrap(), &volume.join("disk"), PRIVATE).unwrap();
    assert!(tree.served().join("c1/m0/disk/f").exists());
    assert!(!tree.served().join("c1/m1/disk/f").exists());
    tree.destroy().unwrap();
    assert!(volume.join("disk/f").exists(), "the host's own mount stays");
    scratch.host.unmount_all(&volume).unwrap();
    assert_eq!(scratch.mounted(), 0);
}

/// What the guest does: each line it prints is one finding.
const GUEST: &str = r#"#!/bin/sh
mkdir -p /proc /s; mount -t proc proc /proc
mount -t virtiofs bulkhead /s || echo "FAILED to mount"
echo "FOUND os=$(cat /s/c1/rootfs/etc/os)"
echo new > /s/c1/rootfs/new && chown 1000:1001 /s/c1/rootfs/new && echo "FOUND written"
mkdir /s/evil 2>/dev/null || echo "FOUND root-refused"
ln -s /etc /s/c1/m9 2>/dev/null || echo "FOUND link-refused"
mount -o remount,rw /s; echo x > /s/c1/m0/f 2>/dev/null || echo "FOUND volume-refused"
[ "$(stat -c %d /s/c1/rootfs/.)" != "$(stat -c %d /s/c1/m0/.)" ] && echo "FOUND devices-differ"
cat /s/c1/m1 && echo "FOUND file"
echo READY
until [ -e /s/late/m0 ]; do usleep 50000; done; echo "FOUND late=$(cat /s/late/m0)"
while ls /s/late >/dev/null 2>&1; do usleep 50000; done; echo "FOUND gone"
poweroff -f
"#;

/// Packs busybox and the script above for a kernel to boot.
async fn initramfs(scratch: &Scratch) -> PathBuf {
    let root = scratch.write("guest/init", GUEST).parent().unwrap().to_owned();
    let script = "mkdir bin && cp $(which busybox) bin/ && chmod 755 init && \
        for a in sh mount mkdir cat echo chown ln stat usleep ls poweroff; do \
        ln -s busybox bin/$a; done && find . | cpio -o -H newc > ../guest.cpio";
    let command = sandbox_host::Command::new("/bin/sh").args(["-c", script]).cwd(root);
    let packed = scratch.host.run(command, Duration::from_secs(60)).await.unwrap();
    assert!(packed.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    scratch.path("guest.cpio")
}

fn qemu(scratch: &Scratch, kernel: &str, initramfs: &Path, socket: &Path) -> ExitWatch {
    let console = scratch.path("console");
    let _ = fs::remove_file(&console);
    let command = sandbox_host::Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-m", "512", "-smp", "1", "-accel", "tcg", "-cpu", "max,-cx16"])
        .args(["-M", "q35,memory-backend=mem", "-object"])
        .arg("memory-backend-memfd,id=mem,size=512M,share=on")
        .args(["-kernel", kernel, "-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests"])
        .arg("-initrd")
        .arg(initramfs)
        .args(["-serial".to_owned(), format!("file:{}", console.display())])
        .args(["-chardev".to_owned(), format!("socket,id=fs,path={}", socket.display())])
        .args(["-device", "vhost-user-fs-pci,chardev=fs,tag=bulkhead,queue-size=512"]);
    scratch.host.spawn(command).unwrap().exit
}

/// Waits until the guest has printed `line`.
async fn printed(scratch: &Scratch, line: &str) {
    let console = scratch.path("console");
    let read = || fs::read_to_string(&console).unwrap_or_default();
    for _ in 0..1200 {
        if read().contains(line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the guest did not print {line:?} in 120 s:\n{}", read());
}

/// Needs QEMU, a static busybox, cpio, and in `BULKHEAD_TEST_KERNEL` a kernel that has virtio-fs
/// and virtio-pci built in.
#[tokio::test]
#[ignore = "needs mount, program:virtiofsd, program:qemu-system-x86_64, program:busybox, program:cpio, env:BULKHEAD_TEST_KERNEL"]
async fn a_guest_reads_and_writes_what_it_may() {
    let scratch = Scratch::new();
    let kernel = std::env::var("BULKHEAD_TEST_KERNEL").unwrap();
    let initramfs = initramfs(&scratch).await;
    let file = scratch.write("volumes/hosts", "hosts\n");
    scratch.write("volumes/data/f", "data");
    for program in programs(&scratch).await {
        let _ = fs::remove_file(scratch.path("upper/new"));
        let tree = scratch.tree();
        let read_only = Bind { read_only: ReadOnly::Top, ..PRIVATE };
        let mounts = vec![
            overlay(&scratch),
            path_mount("m0", &scratch.path("volumes/data"), read_only),
            path_mount("m1", &file, PRIVATE),
        ];
        tree.mount(&id("c1"), mounts).await.unwrap();
        let share = Share::start(&*scratch.host, &program, &tree, None).unwrap();
        let exit = qemu(&scratch, &kernel, &initramfs, share.socket());
        printed(&scratch, "READY").await;
        for finding in [
            "os=guest",
            "written",
            "root-refused",
            "link-refused",
            "volume-refused",
            "devices-differ",
            "file",
        ] {
            printed(&scratch, &format!("FOUND {finding}")).await;
        }
        let owner = fs::metadata(scratch.path("upper/new")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (1000, 1001));
        tree.mount(&id("late"), vec![path_mount("m0", &file, PRIVATE)]).await.unwrap();
        printed(&scratch, "FOUND late=hosts").await;
        tree.remove(&id("late")).unwrap();
        printed(&scratch, "FOUND gone").await;
        let soon = Duration::from_secs(60);
        tokio::time::timeout(soon, exit.wait()).await.expect("the guest powers off");
        // Without its client, virtiofsd exits by itself.
        tokio::time::timeout(soon, share.exited()).await.expect("virtiofsd exits");
        share.stop().await.unwrap();
        tree.destroy().unwrap();
    }
    assert_eq!(scratch.mounted(), 0);
}
