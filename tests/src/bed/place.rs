//! The names of one bed: every path, bridge and cgroup that it uses derives from one short id, so
//! that two beds on a machine never meet and `sweep` finds all of one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The id of a bed and the paths that follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    id: String,
}

impl Place {
    /// A bed with a new id.
    pub(crate) fn fresh() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.subsec_nanos());
        Self { id: format!("{:06x}", (now ^ (std::process::id() << 8)) & 0x00ff_ffff) }
    }

    /// The bed with this id: 4 to 8 lower-case letters and digits.
    pub(crate) fn named(id: &str) -> Result<Self> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(4..=8).contains(&id.len()) || !id.chars().all(good) {
            bail!("bed id {id:?}: must be 4 to 8 lower-case letters and digits");
        }
        Ok(Self { id: id.to_owned() })
    }

    /// The id itself.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Sockets and state. Short: a sandbox's control socket below it must fit 107 bytes.
    pub(crate) fn run(&self) -> PathBuf {
        PathBuf::from(format!("/run/bh-{}", self.id))
    }

    /// Content, snapshots and logs: what may grow large.
    pub(crate) fn lib(&self) -> PathBuf {
        PathBuf::from(format!("/var/lib/bulkhead-bed-{}", self.id))
    }

    /// The cgroup, relative to each hierarchy's root, that holds every container of the bed.
    pub(crate) fn cgroup(&self) -> String {
        format!("/bulkhead-bed-{}", self.id)
    }

    /// What a bridge of this bed is called; fits the kernel's 15 bytes with a two digit suffix.
    pub(crate) fn bridge(&self, suffix: &str) -> String {
        format!("bh{}-{suffix}", self.id)
    }

    /// The name of a CNI network of this bed, which portmap and ipMasq write into their rules.
    pub(crate) fn network(&self, suffix: &str) -> String {
        format!("bulkhead-bed-{}-{suffix}", self.id)
    }

    /// The nftables table of this bed for the link `suffix`.
    pub(crate) fn table(&self, suffix: &str) -> String {
        format!("bulkhead-bed-{}-{suffix}", self.id)
    }

    /// Whether `text` (a command line, a mount, a rule) names this bed.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        text.contains(&format!("/run/bh-{}", self.id))
            || text.contains(&format!("bulkhead-bed-{}", self.id))
    }
}

/// Where packages, images and built tools are kept between runs.
pub(crate) fn cache() -> PathBuf {
    match std::env::var_os("BULKHEAD_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => target().join("bed"),
    }
}

/// Locks `cache` for filling until the value is dropped. Waits for another process that holds the
/// lock: its downloads and builds have deadlines.
pub(crate) fn fills(cache: &Path) -> Result<Flock<File>> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).or_else(|(file, errno)| {
        if errno != Errno::EWOULDBLOCK {
            return Err(errno);
        }
        eprintln!("waiting for another process to fill {}", cache.display());
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)
    });
    locked.with_context(|| format!("cannot lock {}", path.display()))
}

/// The workspace's `target`, which this program is in.
fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let named = |p: &&Path| p.file_name().is_some_and(|name| name == "target");
    match program.ancestors().find(named) {
        Some(target) => target.to_owned(),
        None => PathBuf::from("target"),
    }
}

/// A program built beside this one: in `BULKHEAD_BIN_DIR`, else this program's folder,
/// else the release folder.
pub(crate) fn built(program: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_owned));
    let named = std::env::var_os("BULKHEAD_BIN_DIR").map(PathBuf::from);
    let release = target().join("release");
    let dirs = named.into_iter().chain(beside).chain([release]);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The guest's agent: `BULKHEAD_AGENT`, else where `hack/agent` writes it.
pub(crate) fn agent() -> Option<PathBuf> {
    let named = std::env::var_os("BULKHEAD_AGENT").map(PathBuf::from);
    let arch = std::env::consts::ARCH;
    let usual = format!("guest/{arch}-unknown-linux-gnu/release/bulkhead-agent");
    named.into_iter().chain([target().join(usual)]).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_socket_fits() {
        let id = "f".repeat(64);
        let root = Place::named("abcdef12").unwrap().run().join("r17/k8s.io");
        assert!(root.join(format!("runsc-{id}.sock")).as_os_str().len() <= 106);
    }

    #[test]
    fn a_bridge_name_fits() {
        assert!(Place::named("abcdef12").unwrap().bridge("17").len() <= 15);
    }

    #[test]
    fn a_cache_is_filled_by_one_at_a_time() {
        let cache = std::env::temp_dir().join(format!("bulkhead-lock-{}", std::process::id()));
        let held = fills(&cache).unwrap();
        let (sender, filled) = std::sync::mpsc::channel();
        let other = cache.clone();
        let thread = std::thread::spawn(move || {
            let second = fills(&other).unwrap();
            sender.send(()).unwrap();
            drop(second);
        });
        filled.recv_timeout(std::time::Duration::from_millis(100)).unwrap_err();
        drop(held);
        filled.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        thread.join().unwrap();
        fs::remove_dir_all(cache).unwrap();
    }

    #[test]
    fn ids_are_checked() {
        for bad in ["abc", "a/../b", "ABCDEF", "abcdefghi"] {
            assert!(Place::named(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
        assert!(Place::named(Place::fresh().id()).is_ok());
    }
}
