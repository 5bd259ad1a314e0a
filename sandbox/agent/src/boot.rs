//! From the kernel's first call to a guest that can run containers.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::error::{Doing, Result};
use crate::{cgroup, console, door};

/// Where the agent's binary stands, on a read-only mount: a helper that is inside a container
/// shows it there as `/proc/<pid>/exe`.
pub(crate) const PROGRAM: &str = "/agent";

/// The modules to load, in order; absolute paths in the initial RAM file system.
const MODULES: &str = "/modules.list";

const NEW_ROOT: &str = "/newroot";

/// What container engines give to containers that ask for nothing.
const OPEN_FILES: u64 = 1_048_576;

/// Makes the guest ready.
pub(crate) fn boot() -> Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    early_mounts()?;
    load_modules();
    move_root()?;
    late_mounts()?;
    cgroup::prepare()?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .doing(|| format!("raising the number of open files to {OPEN_FILES}"))?;
    Ok(())
}

fn early_mounts() -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (target, fs, flags) in
        [("/dev", "devtmpfs", MsFlags::MS_NOSUID), ("/proc", "proc", safe), ("/sys", "sysfs", safe)]
    {
        make_dir(Path::new(target))?;
        match door::try_mount(fs, Path::new(target), fs, flags, "") {
            // A kernel with CONFIG_DEVTMPFS_MOUNT may have done it.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(refused) => return Err(refused).doing(|| format!("mounting {fs} at {target}")),
        }
    }
    Ok(())
}

/// A module that does not load is told and left: what needs it will fail with its own words.
fn load_modules() {
    let Ok(list) = fs::read_to_string(MODULES) else { return };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match load_module(path) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => console::error(&format!("loading module {path}: {error}")),
        }
        // Its pages are memory.
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_file(MODULES);
}

fn load_module(path: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    // SAFETY: the descriptor is open, the parameters are an empty C string.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Nobody can pivot away from the initial RAM file system, and containers must: so a tmpfs
/// becomes the root.
fn move_root() -> Result<()> {
    let root = Path::new(NEW_ROOT);
    make_dir(root)?;
    door::mount("tmpfs", root, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")?;
    for name in ["dev", "proc", "sys", "run", "tmp", "root"] {
        make_dir(&root.join(name))?;
    }
    let own = fs::read_link("/proc/self/exe").doing(|| "finding the agent's binary".into())?;
    let program = PathBuf::from(format!("{NEW_ROOT}{PROGRAM}"));
    fs::write(&program, "").doing(|| format!("making {}", program.display()))?;
    door::bind(&own, &program, true)?;
    for name in ["dev", "proc", "sys"] {
        door::move_mount(&Path::new("/").join(name), &root.join(name))?;
    }
    std::env::set_current_dir(root).doing(|| format!("entering {NEW_ROOT}"))?;
    door::move_mount(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").doing(|| "making the new root the root".into())?;
    std::env::set_current_dir("/").doing(|| "entering the new root".into())
}

fn late_mounts() -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let still = safe | MsFlags::MS_NOEXEC;
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (target, fs, flags, data) in [
        ("/dev/pts", "devpts", pts, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", still, "mode=1777"),
        ("/run", "tmpfs", safe, "mode=0755"),
        ("/tmp", "tmpfs", safe, "mode=1777"),
        (cgroup::ROOT, "cgroup2", still, ""),
    ] {
        make_dir(Path::new(target))?;
        door::mount(fs, Path::new(target), fs, flags, data)?;
    }
    make_dir(Path::new(agent_api::GUEST_ROOT))
}

/// Makes a directory that may be there.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).doing(|| format!("making the directory {}", path.display()))
}
