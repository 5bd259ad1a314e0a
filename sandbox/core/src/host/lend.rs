//! Devices and files that belong to somebody else where they are mounted than where they are.
//!
//! Nothing is changed at the source, which others may use: a device gets a second node, and a
//! file is seen through a mount that maps its owner (mount_setattr(2), "ID-mapped mounts") or,
//! where its file system has none, through a loop device.

#![allow(unsafe_code, reason = "a user namespace needs a process, which clone(2) makes")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Gid, Pid, Uid, chown, getpid, getppid};

use super::loopback::Loop;
use super::{MountError, bind, namespace};

/// The stack of a process that only waits.
const STACK: usize = 16 * 1024;

/// Whom something is lent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loan {
    /// The user it belongs to while it is lent.
    pub owner: u32,
    /// Whether that user may only read it.
    pub read_only: bool,
}

/// A device or a file as a mount that is nowhere yet.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) tree: OwnedFd,
    /// What was made for it. It must be held until somebody else has it open.
    pub(super) device: Option<Loop>,
}

/// The device or file `source`, belonging to `loan`'s owner.
pub(super) fn owned(source: &Path, loan: Loan) -> Result<Lent, MountError> {
    let failed = |error| MountError::Lend { source_path: source.to_owned(), source: error };
    let found = fs::metadata(source).map_err(failed)?;
    if found.file_type().is_block_device() {
        let tree = node(&found, loan).map_err(failed)?;
        return Ok(Lent { tree, device: None });
    }
    match mapped(source, &found, loan) {
        Ok(tree) => return Ok(Lent { tree, device: None }),
        // Its file system, or the host, has no such mounts.
        Err(error) => log::info!("{} is lent by a loop device: {error}", source.display()),
    }
    let device = Loop::of(source, loan.read_only).map_err(failed)?;
    let tree = fs::metadata(device.path()).and_then(|found| node(&found, loan));
    Ok(Lent { tree: tree.map_err(failed)?, device: Some(device) })
}

/// The file `source` through a mount in which its owner is `loan`'s.
fn mapped(source: &Path, found: &fs::Metadata, loan: Loan) -> io::Result<OwnedFd> {
    let tree = bind::clone(source, false)?;
    bind::map(&tree, &users(found, loan.owner)?)?;
    if loan.read_only {
        bind::set(&tree, 0, libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    Ok(tree)
}

/// A node of its own for the device `found`, in a file system that is only reached by it.
fn node(found: &fs::Metadata, loan: Loan) -> io::Result<OwnedFd> {
    let (device, owner) = (found.rdev(), loan.owner);
    let mode = if loan.read_only { Mode::S_IRUSR } else { Mode::S_IRUSR | Mode::S_IWUSR };
    let made = namespace::detached(|point| {
        let (tmpfs, flags) = (Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC);
        #[expect(clippy::disallowed_methods, reason = "this is the door")]
        mount(tmpfs, point, tmpfs, flags, Some("size=4k,nr_inodes=2,mode=0700"))?;
        let node = point.join("device");
        mknod(&node, SFlag::S_IFBLK, mode, device)?;
        chown(&node, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
        Ok::<_, Errno>(node)
    })?;
    made.map_err(io::Error::from)
}

/// A user namespace in which the owner of `found` is `owner`. Nobody is in it.
fn users(found: &fs::Metadata, owner: u32) -> io::Result<OwnedFd> {
    let parent = getpid();
    let waits = || -> isize {
        // Nobody else would end it.
        if set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != parent {
            return 1;
        }
        loop {
            // SAFETY: it touches nothing.
            unsafe { libc::pause() };
        }
    };
    let mut stack = vec![0; STACK];
    // No signal tells of its end: whoever collects this process's children does not see it.
    // SAFETY: the child only waits, on a stack that is a copy of its own.
    let child = unsafe { clone(Box::new(waits), &mut stack, CloneFlags::CLONE_NEWUSER, None) }?;
    let child = Waiting(child);
    let proc = Path::new("/proc").join(child.0.to_string());
    fs::write(proc.join("uid_map"), format!("{} {owner} 1", found.uid()))?;
    fs::write(proc.join("gid_map"), format!("{} {owner} 1", found.gid()))?;
    fs::File::open(proc.join("ns/user")).map(OwnedFd::from)
}

/// A child that ends with this.
struct Waiting(Pid);

impl Drop for Waiting {
    fn drop(&mut self) {
        // It cannot end by itself, so that its number is nobody else's.
        let ended = kill(self.0, Signal::SIGKILL)
            .and_then(|()| waitpid(self.0, Some(WaitPidFlag::__WCLONE)));
        if let Err(errno) = ended {
            log::warn!("a process that held a user namespace did not end: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::{Command, Host, RealHost, User};
    use super::*;
    use crate::request::RootfsMount;

    const OWNER: u32 = 0x7000_0001;
    const WRITES: Loan = Loan { owner: OWNER, read_only: false };
    const READS: Loan = Loan { owner: OWNER, read_only: true };

    /// A directory that others come through, and a file in it to mount on.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let point = dir.path().join("point");
        fs::write(&point, "").unwrap();
        (dir, point)
    }

    /// What `script` says when the owner runs it.
    async fn owners(host: &dyn Host, script: &str) -> String {
        let user = User { id: OWNER, groups: vec![] };
        let command = Command::new("/bin/sh").args(["-c", script]).user(user);
        let output = host.run(command, Duration::from_secs(20)).await.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    #[tokio::test]
    async fn what_is_lent_belongs_to_its_owner_alone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let host = RealHost::new().unwrap();
        let (dir, point) = place();
        let image = dir.path().join("image");
        fs::write(&image, [b'x'; 4096]).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
        let read = format!("head -c 3 {}; id -u; id -g", point.display());
        let write = format!("echo -n new | dd of={} conv=notrunc status=none", point.display());

        let apart = host.apart(&[dir.path().to_owned()]).unwrap();
        assert!(owners(&*apart, &format!("cat {}", image.display())).await.contains("denied"));
        apart.lend(&image, &point, WRITES).unwrap();
        let owner = format!("{OWNER}\n{OWNER}\n");
        assert_eq!(owners(&*apart, &read).await, format!("xxx{owner}"));
        assert_eq!(owners(&*apart, &write).await, "");
        assert_eq!(fs::read(&image).unwrap()[..5], *b"newxx");
        assert_eq!(fs::metadata(&image).unwrap().uid(), 0, "its owner has not changed");
        apart.unmount_all(&point).unwrap();
        apart.lend(&image, &point, READS).unwrap();
        assert!(owners(&*apart, &write).await.contains("Read-only file system"));
        apart.unmount_all(&point).unwrap();

        match Loop::of(&image, false) {
            Ok(device) => {
                apart.lend(device.path(), &point, WRITES).unwrap();
                assert_eq!(owners(&*apart, &read).await, format!("new{owner}"));
                assert_eq!(fs::metadata(device.path()).unwrap().uid(), 0);
                apart.unmount_all(&point).unwrap();
            }
            Err(error) => eprintln!("skipped: no loop device here: {error}"),
        }
        let error = apart.lend(Path::new("/no/such"), &point, WRITES).unwrap_err();
        assert_eq!(error.to_string(), "lending /no/such");
        // Neither is in any thread's way: there is no process left.
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        assert_eq!(children, "");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_mapped_is_a_device() {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: loop devices need root and the kernel's driver");
            return;
        }
        let host = RealHost::new().unwrap();
        let (dir, point) = place();
        let ram = dir.path().join("ram");
        fs::create_dir(&ram).unwrap();
        // It has no ID-mapped mounts.
        let ramfs =
            RootfsMount { kind: "ramfs".into(), source: "ramfs".into(), options: Vec::new() };
        host.mount(&ramfs, &ram).unwrap();
        let image = ram.join("image");
        fs::write(&image, [b'x'; 4096]).unwrap();

        let apart = host.apart(&[dir.path().to_owned()]).unwrap();
        let write = format!("echo -n new | dd of={} conv=notrunc,fsync", point.display());
        apart.lend(&image, &point, READS).unwrap();
        let refused = owners(&*apart, &write).await;
        assert!(refused.contains("denied"), "{refused}");
        apart.unmount_all(&point).unwrap();
        apart.lend(&image, &point, WRITES).unwrap();
        let written = owners(&*apart, &write).await;
        assert_eq!(fs::read(&image).unwrap()[..5], *b"newxx", "{written}");
        apart.unmount_all(&point).unwrap();
        // With its device gone nothing uses the file any more.
        host.unmount_all(&ram).unwrap();
    }
}
