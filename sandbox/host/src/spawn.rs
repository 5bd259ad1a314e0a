//! Starting a process with what std's `Command` lacks: inherited fds, namespaces, dropped
//! privileges, death with the parent.

#![allow(unsafe_code, reason = "pre_exec runs between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::setrlimit;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir, getppid, setsid};

use crate::command::{Command, User};
use crate::host_error::HostError;
use crate::{confine, privileges};

/// The search path of started programs when the command names none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Inherited fds are first moved above this number, so that placing one never overwrites another.
const FD_FLOOR: RawFd = 64;

/// Resolves a command's program: a path, or a name looked up in the search path that commands
/// get. `None` when there is no such executable file.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(executable);
    }
    PATH.split(':').map(|dir| Path::new(dir).join(program)).find(executable)
}

/// Starts `command` without watching it, for a caller that exits at once.
///
/// # Errors
///
/// [`HostError::Spawn`] names the program.
pub fn spawn_detached(command: Command) -> Result<u32, HostError> {
    let program = command.program.display().to_string();
    let child = spawn(command).map_err(|source| HostError::Spawn { program, source })?;
    Ok(child.id())
}

/// Starts `command`; streams that it does not set are `/dev/null`.
pub(crate) fn spawn(command: Command) -> io::Result<std::process::Child> {
    let Command { program, arg0, args, env, cwd, stdio, fds, .. } = command;
    let Command { mask_proc_sys_net, dies_with_parent, new_session, .. } = command;
    let Command { netns, without_privileges, limits, paths, mounts, user, .. } = command;
    let mut confinement = paths.as_ref().map(confine::prepare).transpose()?;
    #[expect(clippy::disallowed_methods, reason = "the only place that starts processes")]
    let mut process = std::process::Command::new(&program);
    process.args(args).env_clear().env("PATH", PATH).envs(env);
    if let Some(name) = arg0 {
        process.arg0(name);
    }
    if let Some(cwd) = &cwd {
        process.current_dir(cwd);
    }
    let [stdin, stdout, stderr] = stdio.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
    process.stdin(stdin).stdout(stdout).stderr(stderr);
    let high = lift(fds)?;
    let placed: Vec<(RawFd, RawFd)> = high.iter().map(|(to, fd)| (fd.as_raw_fd(), *to)).collect();
    let placed_max = placed.iter().map(|(_, to)| *to).max().unwrap_or(0);
    let parent = dies_with_parent.then(nix::unistd::getpid);
    // SAFETY: the closure only makes system calls on values that were prepared before the fork:
    // no allocation (nix keeps short paths on the stack), no lock, nothing of this process's
    // other threads.
    unsafe {
        process.pre_exec(move || {
            for (resource, most) in &limits {
                setrlimit(*resource, *most, *most)?;
            }
            if let Some(netns) = &netns {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
            }
            if let Some(mounts) = &mounts {
                setns(mounts, CloneFlags::CLONE_NEWNS)?;
                if let Some(cwd) = &cwd {
                    // The inherited directory is in the other namespace.
                    chdir(cwd)?;
                }
            }
            if mask_proc_sys_net {
                mask_net()?;
            }
            if let Some(confinement) = confinement.take() {
                confine::enforce(confinement)?;
            }
            drop_privileges(without_privileges, user.as_ref(), parent)?;
            if new_session {
                setsid()?;
            }
            for (from, to) in &placed {
                // Plain dup2 leaves the copy without close-on-exec, as wanted.
                if libc::dup2(*from, *to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    };
    let taken = occupy(placed_max)?;
    let child = process.spawn();
    drop((high, taken));
    child
}

/// Drops the calling process's privileges and has the kernel kill it when `parent` dies.
fn drop_privileges(
    without_privileges: bool,
    user: Option<&User>,
    parent: Option<Pid>,
) -> io::Result<()> {
    if without_privileges {
        privileges::drop_capabilities()?;
    }
    if let Some(user) = user {
        privileges::become_user(user)?;
    }
    let Some(parent) = parent else { return Ok(()) };
    // Last: a change of user resets it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Duplicates each fd to a number above [`FD_FLOOR`], close-on-exec.
fn lift(fds: Vec<(i32, OwnedFd)>) -> io::Result<Vec<(i32, OwnedFd)>> {
    use nix::fcntl::{FcntlArg, fcntl};
    use std::os::fd::FromRawFd;
    fds.into_iter()
        .map(|(to, fd)| {
            let raw = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(FD_FLOOR))?;
            // SAFETY: fcntl has just returned `raw`; nothing else owns it.
            Ok((to, unsafe { OwnedFd::from_raw_fd(raw) }))
        })
        .collect()
}

/// Occupies every free fd number up to `last`, so that the pipe on which std's child reports a
/// failed exec does not get one of the numbers that `dup2` overwrites.
fn occupy(last: RawFd) -> io::Result<Vec<std::fs::File>> {
    let mut taken = Vec::new();
    if last == 0 {
        return Ok(taken);
    }
    loop {
        let file = std::fs::File::open("/dev/null")?;
        if file.as_raw_fd() > last {
            return Ok(taken);
        }
        taken.push(file);
    }
}

/// Hides `/proc/sys/net` from the calling process alone.
fn mask_net() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    #[expect(clippy::disallowed_methods, reason = "this module mounts")]
    let result = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .and_then(|()| mount(Some("none"), "/proc/sys/net", Some("tmpfs"), MsFlags::empty(), none));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_by_path_and_by_name() {
        let shell = Some(PathBuf::from("/bin/sh"));
        assert_eq!(find_program(Path::new("/bin/sh")), shell);
        assert!(find_program(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program(Path::new("/etc/passwd")), None);
        assert_eq!(find_program(Path::new("/etc")), None);
        assert_eq!(find_program(Path::new("no-such-program")), None);
    }
}
