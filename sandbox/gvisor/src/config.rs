//! What the admin decides about a gVisor handler.

use std::collections::BTreeMap;
use std::path::PathBuf;

use runsc::{FileAccess, HostUds, Network, OWN_FLAGS, Platform, Settings, Timeouts};
use sandbox_core::{Fault, Faults};
use serde::{Deserialize, Serialize};

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

    /// The part of it that every call of runsc needs.
    pub(crate) fn runsc(&self) -> Settings {
        Settings {
            platform: self.platform,
            network: self.network,
            overlay2: self.overlay2.clone(),
            debug: self.debug,
            debug_log: self.debug_log.clone(),
            oci_seccomp: self.oci_seccomp,
            host_uds: self.host_uds,
            file_access: self.file_access,
            directfs: self.directfs,
            flags: self.flags.clone(),
            timeouts: self.timeouts.clone(),
        }
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

    #[test]
    fn the_admins_choices_reach_runsc() {
        let config = GvisorConfig {
            platform: Platform::Ptrace,
            network: Network::None,
            overlay2: "none".into(),
            debug: true,
            debug_log: Some("/var/log/gv/".into()),
            oci_seccomp: false,
            host_uds: HostUds::Open,
            file_access: FileAccess::Shared,
            directfs: false,
            flags: [("net-raw".to_owned(), "true".to_owned())].into(),
            timeouts: Timeouts { call: 3, ..Timeouts::default() },
            ..GvisorConfig::default()
        };
        let expected = Settings {
            platform: Platform::Ptrace,
            network: Network::None,
            overlay2: "none".into(),
            debug: true,
            debug_log: Some("/var/log/gv/".into()),
            oci_seccomp: false,
            host_uds: HostUds::Open,
            file_access: FileAccess::Shared,
            directfs: false,
            flags: [("net-raw".to_owned(), "true".to_owned())].into(),
            timeouts: Timeouts { call: 3, ..Timeouts::default() },
        };
        assert_eq!(config.runsc(), expected);
    }
}
