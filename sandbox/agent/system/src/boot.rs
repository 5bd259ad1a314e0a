//! Sets the guest up, from the kernel's start of `/init` to a system that can run containers.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::MsFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::error::{Doing, Result};
use crate::paths::make_dir;
use crate::{console, hotplug, mounts, network};

/// The agent's binary, on a read-only mount: inside a container it can be reached as
/// `/proc/<pid>/exe` of the process that enters it.
pub const PROGRAM: &str = "/agent";

/// The mount point of the hierarchy of cgroups (v2).
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Lists the modules to load, in order, as absolute paths in the initramfs.
const MODULES: &str = "/modules.list";

const NEW_ROOT: &str = "/newroot";

/// Other container engines' default for containers without a limit.
const OPEN_FILES: u64 = 1_048_576;

/// Mounts file systems, loads modules, brings the loopback up and has new memory brought online.
///
/// # Errors
///
/// What a guest cannot do without has failed. A module that is not loaded is not among it.
pub fn boot() -> Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    early_mounts()?;
    load_modules();
    move_root()?;
    late_mounts()?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .doing(|| format!("raising the number of open files to {OPEN_FILES}"))?;
    network::loopback_up()?;
    hotplug::online_new_memory();
    Ok(())
}

fn early_mounts() -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (target, fs, flags) in
        [("/dev", "devtmpfs", MsFlags::MS_NOSUID), ("/proc", "proc", safe), ("/sys", "sysfs", safe)]
    {
        make_dir(Path::new(target))?;
        match mounts::try_mount(fs, Path::new(target), fs, flags, "") {
            // A kernel with CONFIG_DEVTMPFS_MOUNT may have mounted /dev.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno).doing(|| format!("mounting {fs} at {target}")),
        }
    }
    Ok(())
}

/// Loads the listed modules. A failure is logged and not fatal: what needs the module will fail
/// with its own error.
fn load_modules() {
    let Ok(list) = fs::read_to_string(MODULES) else { return };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match load_module(path) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => console::log_error(&format!("loading module {path}: {error}")),
        }
        // The file is in memory.
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_file(MODULES);
}

fn load_module(path: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(finit_module(&file, c"", ModuleInitFlags::empty())?)
}

/// Moves to a tmpfs as the root: pivot_root(2), which containers need, does not work on the
/// initramfs.
fn move_root() -> Result<()> {
    let root = Path::new(NEW_ROOT);
    make_dir(root)?;
    mounts::mount("tmpfs", root, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")?;
    for name in ["dev", "proc", "sys", "run", "tmp", "root"] {
        make_dir(&root.join(name))?;
    }
    let own = fs::read_link("/proc/self/exe").doing(|| "finding the agent's binary".into())?;
    let program = root.join(PROGRAM.trim_start_matches('/'));
    fs::write(&program, "").doing(|| format!("creating {}", program.display()))?;
    mounts::bind(&own, &program, true)?;
    for name in ["dev", "proc", "sys"] {
        mounts::move_mount(&Path::new("/").join(name), &root.join(name))?;
    }
    std::env::set_current_dir(root).doing(|| format!("entering {NEW_ROOT}"))?;
    mounts::move_mount(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").doing(|| "changing to the new root".into())?;
    std::env::set_current_dir("/").doing(|| "entering the new root".into())
}

fn late_mounts() -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let no_programs = safe | MsFlags::MS_NOEXEC;
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (target, fs, flags, data) in [
        ("/dev/pts", "devpts", pts, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", no_programs, "mode=1777"),
        ("/run", "tmpfs", safe, "mode=0755"),
        ("/tmp", "tmpfs", safe, "mode=1777"),
        (CGROUPS, "cgroup2", no_programs, ""),
    ] {
        make_dir(Path::new(target))?;
        mounts::mount(fs, Path::new(target), fs, flags, data)?;
    }
    make_dir(Path::new(agent_api::GUEST_ROOT))
}
