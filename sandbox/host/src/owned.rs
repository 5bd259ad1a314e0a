//! Mounts of a device or file in which another user owns it.
//!
//! The source is not changed, since others may use it: a device gets a second node; a file gets an
//! ID-mapped mount (mount_setattr(2)) or, where its file system does not support those, a loop
//! device.

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

use crate::loopback::Loop;
use crate::mount_error::MountError;
use crate::{bind, namespace};

/// The stack of a process that only waits.
const STACK: usize = 16 * 1024;

/// Owner and access of [`crate::Host::bind_owned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnedBind {
    /// UID of the owner, and GID of the same number.
    pub uid: u32,
    /// Whether the owner may only read it.
    pub read_only: bool,
}

/// A detached mount of a device or file.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) tree: OwnedFd,
    /// The loop device behind it, to be held open until its user has opened it.
    pub(crate) device: Option<Loop>,
}

/// A detached mount of the device or file `source`.
pub(crate) fn detached(source: &Path, how: OwnedBind) -> Result<Detached, MountError> {
    let failed = |error| MountError::Owned { source_path: source.to_owned(), source: error };
    let found = fs::metadata(source).map_err(failed)?;
    if found.file_type().is_block_device() {
        let tree = node(&found, how).map_err(failed)?;
        return Ok(Detached { tree, device: None });
    }
    match mapped(source, &found, how) {
        Ok(tree) => return Ok(Detached { tree, device: None }),
        Err(error) => {
            tracing::info!(file = %source.display(), "no ID-mapped mount, using a loop device: {error}");
        }
    }
    let device = Loop::attach(source, how.read_only).map_err(failed)?;
    let tree = fs::metadata(device.path()).and_then(|found| node(&found, how));
    Ok(Detached { tree: tree.map_err(failed)?, device: Some(device) })
}

/// An ID-mapped mount of the file `source`.
fn mapped(source: &Path, found: &fs::Metadata, how: OwnedBind) -> io::Result<OwnedFd> {
    let tree = bind::clone(source, false)?;
    bind::map_owners(&tree, &user_namespace(found, how.uid)?)?;
    if how.read_only {
        bind::set(&tree, 0, libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    Ok(tree)
}

/// A new node for the device `found`, on a tmpfs of which only the node is mounted.
fn node(found: &fs::Metadata, how: OwnedBind) -> io::Result<OwnedFd> {
    let device = found.rdev();
    let mode = if how.read_only { Mode::S_IRUSR } else { Mode::S_IRUSR | Mode::S_IWUSR };
    let made = namespace::detached(|point| {
        let tmpfs = Some("tmpfs");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        #[expect(clippy::disallowed_methods, reason = "this module mounts")]
        mount(tmpfs, point, tmpfs, flags, Some("size=4k,nr_inodes=2,mode=0700"))?;
        let node = point.join("device");
        mknod(&node, SFlag::S_IFBLK, mode, device)?;
        chown(&node, Some(Uid::from_raw(how.uid)), Some(Gid::from_raw(how.uid)))?;
        Ok::<_, Errno>(node)
    })?;
    made.map_err(io::Error::from)
}

/// A user namespace without processes that maps the owner of `found` to `uid`.
fn user_namespace(found: &fs::Metadata, uid: u32) -> io::Result<OwnedFd> {
    let parent = getpid();
    let waits = || -> isize {
        // Without a parent nothing else would kill it.
        if set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != parent {
            return 1;
        }
        loop {
            // SAFETY: pause(2) takes no argument and touches no memory.
            unsafe { libc::pause() };
        }
    };
    let mut stack = vec![0; STACK];
    // Without an exit signal it is a clone child, which the reaper's waitid(2) does not collect.
    // SAFETY: the child has a copy of the memory, stack included, and only waits.
    let child = unsafe { clone(Box::new(waits), &mut stack, CloneFlags::CLONE_NEWUSER, None) }?;
    let child = KillOnDrop(child);
    let proc = Path::new("/proc").join(child.0.to_string());
    fs::write(proc.join("uid_map"), format!("{} {uid} 1", found.uid()))?;
    fs::write(proc.join("gid_map"), format!("{} {uid} 1", found.gid()))?;
    fs::File::open(proc.join("ns/user")).map(OwnedFd::from)
}

/// A clone child that is killed and reaped on drop.
struct KillOnDrop(Pid);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Not reaped before this, so its id cannot have been reused.
        let reaped = kill(self.0, Signal::SIGKILL)
            .and_then(|()| waitpid(self.0, Some(WaitPidFlag::__WCLONE)));
        if let Err(errno) = reaped {
            tracing::warn!(pid = %self.0, "cannot reap the process of a user namespace: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::command::{Command, User};
    use crate::host::Host;
    use crate::mount::RootfsMount;
    use crate::real::RealHost;

    const OWNER: u32 = 0x7000_0001;
    const READ_WRITE: OwnedBind = OwnedBind { uid: OWNER, read_only: false };
    const READ_ONLY: OwnedBind = OwnedBind { uid: OWNER, read_only: true };

    /// A directory that other users can traverse, and a file in it to mount on.
    fn mount_point() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let point = dir.path().join("point");
        fs::write(&point, "").unwrap();
        (dir, point)
    }

    /// Output of `script`, run by the owner.
    async fn run_as_owner(host: &dyn Host, script: &str) -> String {
        let user = User { id: OWNER, groups: vec![] };
        let command = Command::new("/bin/sh").args(["-c", script]).user(user);
        let output = host.run(command, Duration::from_secs(20)).await.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    #[tokio::test]
    #[ignore = "needs mount"]
    async fn a_file_has_another_owner_at_the_mount_point_only() {
        let host = RealHost::new().unwrap();
        let (dir, point) = mount_point();
        let image = dir.path().join("image");
        fs::write(&image, [b'x'; 4096]).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
        let read = format!("head -c 3 {}; id -u; id -g", point.display());
        let write = format!("echo -n new | dd of={} conv=notrunc status=none", point.display());

        let pod = host.with_private_mounts(&[dir.path().to_owned()]).unwrap();
        assert!(run_as_owner(&*pod, &format!("cat {}", image.display())).await.contains("denied"));
        pod.bind_owned(&image, &point, READ_WRITE).unwrap();
        let owner = format!("{OWNER}\n{OWNER}\n");
        assert_eq!(run_as_owner(&*pod, &read).await, format!("xxx{owner}"));
        assert_eq!(run_as_owner(&*pod, &write).await, "");
        assert_eq!(fs::read(&image).unwrap()[..5], *b"newxx");
        assert_eq!(fs::metadata(&image).unwrap().uid(), 0, "the owner of the source");
        pod.unmount_all(&point).unwrap();
        pod.bind_owned(&image, &point, READ_ONLY).unwrap();
        assert!(run_as_owner(&*pod, &write).await.contains("Read-only file system"));
        pod.unmount_all(&point).unwrap();

        let error = pod.bind_owned(Path::new("/no/such"), &point, READ_WRITE).unwrap_err();
        assert_eq!(error.to_string(), "mounting /no/such with another owner");
        // The processes of the user namespaces are reaped.
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        assert_eq!(children, "");
    }

    #[tokio::test]
    #[ignore = "needs mount, loop"]
    async fn a_device_has_another_owner_at_the_mount_point_only() {
        let host = RealHost::new().unwrap();
        let (dir, point) = mount_point();
        let image = dir.path().join("image");
        fs::write(&image, [b'x'; 4096]).unwrap();
        let device = Loop::attach(&image, false).unwrap();

        let pod = host.with_private_mounts(&[dir.path().to_owned()]).unwrap();
        pod.bind_owned(device.path(), &point, READ_WRITE).unwrap();
        let read = format!("head -c 3 {}; id -u; id -g", point.display());
        assert_eq!(run_as_owner(&*pod, &read).await, format!("xxx{OWNER}\n{OWNER}\n"));
        assert_eq!(fs::metadata(device.path()).unwrap().uid(), 0, "the owner of the source");
        pod.unmount_all(&point).unwrap();
    }

    #[tokio::test]
    #[ignore = "needs mount, loop"]
    async fn a_file_that_cannot_be_mapped_is_bound_through_a_loop_device() {
        let host = RealHost::new().unwrap();
        let (dir, point) = mount_point();
        let ram = dir.path().join("ram");
        fs::create_dir(&ram).unwrap();
        // ramfs does not support ID-mapped mounts.
        let ramfs =
            RootfsMount { kind: "ramfs".into(), source: "ramfs".into(), options: Vec::new() };
        host.mount(&ramfs, &ram).unwrap();
        let image = ram.join("image");
        fs::write(&image, [b'x'; 4096]).unwrap();

        let pod = host.with_private_mounts(&[dir.path().to_owned()]).unwrap();
        let write = format!("echo -n new | dd of={} conv=notrunc,fsync", point.display());
        pod.bind_owned(&image, &point, READ_ONLY).unwrap();
        let output = run_as_owner(&*pod, &write).await;
        assert!(output.contains("denied"), "{output}");
        pod.unmount_all(&point).unwrap();
        pod.bind_owned(&image, &point, READ_WRITE).unwrap();
        let written = run_as_owner(&*pod, &write).await;
        assert_eq!(fs::read(&image).unwrap()[..5], *b"newxx", "{written}");
        pod.unmount_all(&point).unwrap();
        // The loop device is gone and no longer keeps the file system busy.
        host.unmount_all(&ram).unwrap();
    }
}
