//! What the admin decides about a gVisor handler.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_core::{Fault, Faults};
use serde::{Deserialize, Serialize};

/// How runsc's sentry catches the guest's system calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// seccomp traps; works everywhere, in VMs as well.
    #[default]
    Systrap,
    /// ptrace; for runsc builds older than systrap.
    Ptrace,
    /// KVM; for bare metal.
    Kvm,
}

/// Where the guest's packets go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// gVisor's own network stack on the Pod's interface.
    #[default]
    Sandbox,
    /// The host kernel's stack in the Pod's network namespace: faster, less isolated.
    Host,
    /// Loopback only.
    None,
}

/// Which Unix sockets of the host a guest may reach through its mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostUds {
    /// None.
    #[default]
    None,
    /// Connect to sockets that exist.
    Open,
    /// Make sockets that host processes can connect to.
    Create,
    /// Both.
    All,
}

/// Whether other processes than the sandbox change the root file system while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileAccess {
    /// They do not: the sentry may cache.
    #[default]
    Exclusive,
    /// They may: every access is checked. Needs `overlay2 = "none"`.
    Shared,
}

/// How long each kind of runsc call may take, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// `runsc create`; a platform that the host lacks can hang for ever.
    pub create: u64,
    /// `runsc start`, `restore` and `checkpoint`.
    pub start: u64,
    /// One call on the sandbox's control socket.
    pub call: u64,
    /// `runsc delete`, and the wait for a killed sandbox's exit.
    pub delete: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { create: 60, start: 60, call: 10, delete: 15 }
    }
}

impl Timeouts {
    pub(crate) fn create(&self) -> Duration {
        Duration::from_secs(self.create)
    }

    pub(crate) fn start(&self) -> Duration {
        Duration::from_secs(self.start)
    }

    pub(crate) fn call(&self) -> Duration {
        Duration::from_secs(self.call)
    }

    pub(crate) fn delete(&self) -> Duration {
        Duration::from_secs(self.delete)
    }
}

/// A gVisor handler's settings. The defaults suit Debian's runsc on any host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GvisorConfig {
    /// The runsc binary: an absolute path, or a name to find in `PATH`.
    pub runsc: PathBuf,
    /// Directory of runsc's state; each containerd namespace has a directory in it. At most 60
    /// bytes keep the control socket's path short enough for a Unix socket.
    pub root: PathBuf,
    /// runsc's `--platform`.
    pub platform: Platform,
    /// runsc's `--network`.
    pub network: Network,
    /// Let a Pod that asks for the host's network have it (`--network=host`, for that Pod alone);
    /// without it such a Pod is refused.
    pub allow_host_network: bool,
    /// runsc's `--overlay2`: where writes to the root file system go.
    pub overlay2: String,
    /// runsc's `--debug`.
    pub debug: bool,
    /// runsc's `--debug-log`; a directory when it ends in `/`.
    pub debug_log: Option<PathBuf>,
    /// Load a container's own seccomp filter inside the sandbox (`--oci-seccomp`). Without it the
    /// profile that a Pod asks for is ignored.
    pub oci_seccomp: bool,
    /// runsc's `--host-uds`.
    pub host_uds: HostUds,
    /// runsc's `--file-access`.
    pub file_access: FileAccess,
    /// Let the sentry open files itself, not through the gofer (`--directfs`).
    pub directfs: bool,
    /// More global runsc flags, without dashes.
    pub flags: BTreeMap<String, String>,
    /// `dev.gvisor.*` annotations that a Pod may set; a trailing `*` matches any ending. All
    /// others are taken off before runsc sees them.
    pub allow_annotations: Vec<String>,
    /// Bytes that the sandbox itself may use beyond its containers' memory limits. Each
    /// container after the first adds 6 MiB, and their sum a 32nd part of it.
    pub memory_overhead: u64,
    /// Limits on the time of runsc's calls.
    pub timeouts: Timeouts,
}

impl Default for GvisorConfig {
    fn default() -> Self {
        Self {
            runsc: PathBuf::from("runsc"),
            root: PathBuf::from("/run/bulkhead/runsc"),
            platform: Platform::default(),
            network: Network::default(),
            allow_host_network: false,
            overlay2: "root:self".to_owned(),
            debug: false,
            debug_log: None,
            oci_seccomp: true,
            host_uds: HostUds::default(),
            file_access: FileAccess::default(),
            directfs: true,
            flags: BTreeMap::new(),
            allow_annotations: Vec::new(),
            memory_overhead: 22 << 20,
            timeouts: Timeouts::default(),
        }
    }
}

/// Flags that this backend sets by itself; `flags` may not name them.
const OWN_FLAGS: [&str; 16] = [
    "root",
    "log",
    "log-fd",
    "log-format",
    "debug",
    "debug-log",
    "platform",
    "network",
    "overlay2",
    "overlay",
    "oci-seccomp",
    "host-uds",
    "file-access",
    "directfs",
    "ignore-cgroups",
    "rootless",
];

/// The longest `root`, in bytes.
const ROOT_MAX: usize = 60;

impl GvisorConfig {
    /// Every setting that cannot be used, at once.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        faults.check_program("runsc", &self.runsc);
        let root = self.root.to_string_lossy();
        if !self.root.is_absolute() || root == "/" {
            faults.add("root", &root, "must be an absolute path below /");
        } else if root.len() > ROOT_MAX {
            faults.add(
                "root",
                &root,
                "is longer than 60 bytes, too long for runsc's control socket",
            );
        }
        if self.file_access == FileAccess::Shared && self.overlay2 != "none" {
            faults.add("file_access", "shared", "needs overlay2 = \"none\"");
        }
        for (name, value) in &self.flags {
            let known = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !known || name.is_empty() || name.starts_with('-') {
                faults.add("flags", name, "write a flag's name without leading dashes");
            } else if OWN_FLAGS.contains(&name.as_str()) {
                faults.add("flags", name, "has a setting of its own or is set by the shim");
            } else if name.starts_with("TESTONLY") {
                faults.add("flags", name, "is for gVisor's own tests and disables the isolation");
            }
            if value.contains('\0') {
                faults.add("flags", name, "its value holds a NUL byte");
            }
        }
        for pattern in &self.allow_annotations {
            if !pattern.starts_with("dev.gvisor.") {
                faults.add("allow_annotations", pattern, "must start with dev.gvisor.");
            }
        }
        let times = [
            ("timeouts.create", self.timeouts.create),
            ("timeouts.start", self.timeouts.start),
            ("timeouts.call", self.timeouts.call),
            ("timeouts.delete", self.timeouts.delete),
        ];
        for (key, seconds) in times {
            faults.check_seconds(key, seconds);
        }
        faults.into_vec()
    }

    /// Whether raw sockets are on, which decides if guests keep `CAP_NET_RAW`.
    pub(crate) fn net_raw(&self) -> bool {
        matches!(self.flags.get("net-raw").map(String::as_str), Some("true" | "1" | "t" | "T"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_have_no_fault() {
        assert_eq!(GvisorConfig::default().faults(), []);
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let config = GvisorConfig {
            runsc: "bin/runsc".into(),
            root: "run".into(),
            file_access: FileAccess::Shared,
            flags: [("--debug", "1"), ("platform", "kvm"), ("TESTONLY-x", "")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            allow_annotations: vec!["com.example.*".into()],
            timeouts: Timeouts { call: 0, ..Timeouts::default() },
            ..GvisorConfig::default()
        };
        let keys: Vec<_> = config.faults().into_iter().map(|f| f.key).collect();
        assert_eq!(
            keys,
            [
                "runsc",
                "root",
                "file_access",
                "flags",
                "flags",
                "flags",
                "allow_annotations",
                "timeouts.call"
            ]
        );
    }

    #[test]
    fn survives_being_persisted() {
        let config = GvisorConfig {
            platform: Platform::Kvm,
            flags: [("net-raw".to_owned(), "true".to_owned())].into(),
            ..GvisorConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<GvisorConfig>(&text).unwrap(), config);
        assert!(config.net_raw());
    }
}
