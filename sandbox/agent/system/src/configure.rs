//! What the host's first call sets up in the guest.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use agent_api::agent::{ConfigureRequest, Share};
use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::blocking::blocking;
use crate::error::{Doing, Result, invalid};
use crate::paths::{below_guest_root, make_dir};
use crate::{clock, console, mounts, network, sysctl, uevent};

/// The kernel's pool gains nothing from more.
const ENTROPY_MAX: usize = 4096;

/// Sets up clock, host name, network, sysctls and shares, as the host's first call asks for.
///
/// # Errors
///
/// The first that could not be set up; what was set up before it stays.
pub async fn configure(request: ConfigureRequest) -> Result<()> {
    console::set_debug(request.debug);
    clock::set_clock(request.clock_ns)?;
    add_entropy(&request.entropy)?;
    nix::unistd::sethostname(&request.hostname)
        .doing(|| format!("setting the host name {:?}", request.hostname))?;
    if request.shm_size > 0 {
        let flags =
            MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let data = format!("mode=1777,size={}", request.shm_size);
        mounts::mount("tmpfs", Path::new("/dev/shm"), "tmpfs", flags, &data)?;
    }
    network::configure(request.interfaces, request.routes, request.neighbours).await?;
    for (key, value) in &request.sysctls {
        sysctl::write_sysctl(key, value)?;
    }
    for share in request.shares {
        blocking(move || mount_share(&share)).await?;
    }
    Ok(())
}

/// Adds the host's random bytes to the kernel's pool and credits them.
#[expect(unsafe_code, reason = "only an ioctl credits random bytes")]
fn add_entropy(bytes: &[u8]) -> Result<()> {
    /// `_IOW('R', 0x03, int[2])` of linux/random.h.
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    if bytes.is_empty() {
        return Ok(());
    }
    if bytes.len() > ENTROPY_MAX {
        return Err(invalid(format!("{} bytes of entropy are over {ENTROPY_MAX}", bytes.len())));
    }
    let doing = || "adding entropy".to_owned();
    let pool = fs::OpenOptions::new().write(true).open("/dev/random").doing(doing)?;
    // At most ENTROPY_MAX, so the cast is lossless.
    let length = bytes.len() as i32;
    let mut message = Vec::with_capacity(8 + bytes.len());
    message.extend((length * 8).to_ne_bytes());
    message.extend(length.to_ne_bytes());
    message.extend(bytes);
    // SAFETY: the message is a struct rand_pool_info: two ints, the second the number of the
    // bytes that follow; the kernel only reads it.
    let done = unsafe { libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY, message.as_ptr()) };
    Errno::result(done).map(drop).doing(doing)
}

/// Mounts a virtio-fs share, waiting for its device if it is hot-plugged. Blocks.
fn mount_share(share: &Share) -> Result<()> {
    let target = below_guest_root("a share's mount point", &share.mount_point)?;
    make_dir(&target)?;
    // No MS_NOSUID: containers' root file systems are below it.
    let flags = if share.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let tag = &share.tag;
    uevent::await_device(&format!("the share {tag:?}"), || {
        match mounts::try_mount(tag, &target, "virtiofs", flags, "") {
            Ok(()) => Ok(Some(())),
            // No device with this tag.
            Err(Errno::EINVAL) => Ok(None),
            Err(errno) => {
                Err(errno).doing(|| format!("mounting share {tag:?} at {}", target.display()))
            }
        }
    })
}
