//! The guest as a whole: what the first call sets up, and what containers share.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent_api::agent::{ConfigureRequest, ConfigureResponse, OnlineResponse, Share};
use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::boot::make_dir;
use crate::containers::Containers;
use crate::error::{Doing, Result, internal, invalid, refused};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::storage::{Storages, guest_path};
use crate::{cgroup, clock, console, door, network, uevent};

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// More would only take time.
const ENTROPY_MAX: usize = 4096;

/// What everything in the agent works on.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) reaper: Reaper,
    pub(crate) containers: Containers,
    pub(crate) storages: Arc<Storages>,
    /// Nanoseconds from the kernel's start to the agent's first instruction.
    started_ns: u64,
    /// Set by the first call; 0 for no bound.
    stream_write_max: OnceLock<u32>,
    /// The Pod's first container's process, whose process id namespace is the Pod's.
    first: OnceLock<Arc<Process>>,
}

impl Guest {
    pub(crate) fn new(started_ns: u64, reaper: Reaper) -> Self {
        Self {
            reaper,
            containers: Containers::default(),
            storages: Arc::default(),
            started_ns,
            stream_write_max: OnceLock::new(),
            first: OnceLock::new(),
        }
    }

    /// The most bytes to write to a stream of the host at once.
    pub(crate) fn stream_write_max(&self) -> usize {
        match self.stream_write_max.get() {
            None | Some(0) => usize::MAX,
            Some(max) => usize::try_from(*max).unwrap_or(usize::MAX),
        }
    }

    /// Refuses what comes before the first call.
    pub(crate) fn must_be_configured(&self) -> Result<()> {
        match self.stream_write_max.get() {
            Some(_) => Ok(()),
            None => Err(refused("the guest is not configured yet")),
        }
    }

    /// A container was made. The first one's namespace is the Pod's.
    pub(crate) fn made(&self, process: &Arc<Process>) {
        self.first.get_or_init(|| process.clone());
    }

    /// The Pod's process id namespace; `None` when the first container is only now made.
    pub(crate) fn pod_pid_namespace(&self) -> Result<Option<String>> {
        let Some(first) = self.first.get() else { return Ok(None) };
        match first.pid() {
            Some(pid) => Ok(Some(format!("/proc/{pid}/ns/pid"))),
            None => Err(refused(
                "the Pod's first container has ended, and its process id namespace with it",
            )),
        }
    }

    /// The first call.
    pub(crate) async fn configure(&self, request: ConfigureRequest) -> Result<ConfigureResponse> {
        if request.protocol != agent_api::PROTOCOL {
            return Err(refused(format!(
                "the host speaks protocol {}, this agent {}",
                request.protocol,
                agent_api::PROTOCOL
            )));
        }
        if self.stream_write_max.set(request.stream_write_max).is_err() {
            return Err(refused("the guest is configured already"));
        }
        console::set_debug(request.debug);
        clock::set(request.clock_ns)?;
        add_entropy(&request.entropy)?;
        nix::unistd::sethostname(&request.hostname)
            .doing(|| format!("setting the host name {:?}", request.hostname))?;
        if request.shm_size > 0 {
            let flags =
                MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let data = format!("mode=1777,size={}", request.shm_size);
            door::mount("tmpfs", Path::new("/dev/shm"), "tmpfs", flags, &data)?;
        }
        network::configure(&request.interfaces, &request.routes, &request.neighbours).await?;
        for (key, value) in &request.sysctls {
            sysctl(key, value)?;
        }
        for share in request.shares {
            crate::container::blocking(move || mount_share(&share)).await?;
        }
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .doing(|| "reading the kernel's release".into())?;
        Ok(ConfigureResponse {
            protocol: agent_api::PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: kernel.trim().into(),
            agent_started_ns: self.started_ns,
            memory_block: memory_block(),
            configured_ns: clock::since_boot(),
            ..ConfigureResponse::default()
        })
    }
}

/// Mixes what the host sends into the kernel's pool, and counts it.
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
    // At most ENTROPY_MAX, which fits.
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

/// Writes a sysctl; `.` and `/` both separate, as sysctl(8) has it.
pub(crate) fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = sysctl_path(key)?;
    fs::write(&path, value).doing(|| format!("setting sysctl {key} to {value:?}"))
}

fn sysctl_path(key: &str) -> Result<PathBuf> {
    // Where the first separator is a slash, dots belong to names (`net/ipv4/conf/eth0.1/...`).
    let first = key.find(['.', '/']).map(|at| key.as_bytes()[at]);
    let path = if first == Some(b'.') { key.replace('.', "/") } else { key.to_owned() };
    let fine = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if fine {
        Ok(Path::new("/proc/sys").join(path))
    } else {
        Err(invalid(format!("{key:?} is no sysctl")))
    }
}

/// Mounts a virtio-fs share, which may be plugged in only now. Blocks.
fn mount_share(share: &Share) -> Result<()> {
    let target = guest_path("a share's mount point", &share.mount_point)?;
    make_dir(&target)?;
    // Root file systems live in it: set-user-id programs stay what they are.
    let flags = if share.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let tag = &share.tag;
    uevent::await_device(&format!("the share {tag:?}"), || {
        match door::try_mount(tag, &target, "virtiofs", flags, "") {
            Ok(()) => Ok(Some(())),
            // No such tag.
            Err(Errno::EINVAL) => Ok(None),
            Err(refused) => {
                Err(refused).doing(|| format!("mounting share {tag:?} at {}", target.display()))
            }
        }
    })
}

/// Bytes in a block of memory that can be plugged in; 0 where the kernel cannot.
fn memory_block() -> u64 {
    let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).unwrap_or_default();
    u64::from_str_radix(text.trim(), 16).unwrap_or(0)
}

/// Takes plugged-in processors and memory into use, until `vcpus` are. Blocks.
pub(crate) fn online(vcpus: u32) -> Result<OnlineResponse> {
    let memory = || -> Result<u64> {
        let block = memory_block();
        bring_online(MEMORY, "memory", "state", "online")?;
        let online = count(MEMORY, "memory", |dir| is(&dir.join("state"), "online"));
        Ok(block * u64::from(online))
    };
    let online = uevent::await_device(&format!("processor {vcpus}"), || {
        bring_online(CPUS, "cpu", "online", "1")?;
        // The first one may have no switch.
        let online =
            count(CPUS, "cpu", |dir| !dir.join("online").exists() || is(&dir.join("online"), "1"));
        Ok(Some(online).filter(|online| *online >= vcpus))
    })?;
    Ok(OnlineResponse { vcpus: online, memory: memory()?, ..OnlineResponse::default() })
}

/// Directories below `root` whose name is `prefix` and a number.
fn numbered(root: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let numbered = entries.filter(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    });
    numbered.map(|entry| entry.path()).collect()
}

fn count(root: &str, prefix: &str, test: impl Fn(&Path) -> bool) -> u32 {
    let counted = numbered(root, prefix).iter().filter(|dir| test(dir)).count();
    u32::try_from(counted).unwrap_or(u32::MAX)
}

fn is(file: &Path, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == value)
}

fn bring_online(root: &str, prefix: &str, file: &str, value: &str) -> Result<()> {
    for dir in numbered(root, prefix) {
        let switch = dir.join(file);
        if switch.exists() && !is(&switch, value) {
            fs::write(&switch, value)
                .doing(|| format!("writing {value} to {}", switch.display()))?;
        }
    }
    Ok(())
}

/// Memory that is plugged in later is used at once, where the kernel can.
pub(crate) fn use_new_memory() {
    let _ = fs::write(Path::new(MEMORY).join("auto_online_blocks"), "online");
}

/// Kills every container and ends the machine a moment later.
pub(crate) fn shut_down() -> Result<()> {
    let killed = cgroup::kill_all();
    tokio::spawn(async {
        // The answer may still arrive.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = tokio::task::spawn_blocking(console::power_off).await;
    });
    killed.map_err(|error| internal(format!("killing every container: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_by_dots_or_slashes() {
        let path = |key| sysctl_path(key).map(|path| path.display().to_string()).ok();
        assert_eq!(path("net.core.somaxconn").as_deref(), Some("/proc/sys/net/core/somaxconn"));
        let slashes = "net/ipv4/conf/eth0.1/forwarding";
        assert_eq!(path(slashes), Some(format!("/proc/sys/{slashes}")));
        for bad in ["", "/etc/passwd", "a..b", "net/../../x", "../x"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn another_protocol_is_refused() {
        let guest = Guest::new(0, Reaper::default());
        assert!(guest.must_be_configured().is_err());
        let request = ConfigureRequest { protocol: 99, ..ConfigureRequest::default() };
        let error = guest.configure(request).await.unwrap_err().to_string();
        assert_eq!(error, "the host speaks protocol 99, this agent 1");
    }
}
