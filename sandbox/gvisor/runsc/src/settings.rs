//! What all calls of runsc have in common.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The flags and deadlines of runsc's calls. Values are passed on as they are; the installed build
/// is asked whether it knows the names of `flags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `--platform`.
    pub platform: Platform,
    /// `--network`.
    pub network: Network,
    /// `--overlay2`: where writes to the root file system go, in runsc's own notation.
    pub overlay2: String,
    /// `--debug`.
    pub debug: bool,
    /// `--debug-log`; a directory when it ends in `/`.
    pub debug_log: Option<PathBuf>,
    /// `--oci-seccomp`: load a container's own seccomp filter inside the sandbox.
    pub oci_seccomp: bool,
    /// `--host-uds`.
    pub host_uds: HostUds,
    /// `--file-access`.
    pub file_access: FileAccess,
    /// `--directfs`: the sentry opens files itself, not through the gofer.
    pub directfs: bool,
    /// More global flags by name, without dashes; none of [`OWN_FLAGS`](crate::OWN_FLAGS).
    pub flags: BTreeMap<String, String>,
    /// Limits on the time of the calls.
    pub timeouts: Timeouts,
}

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

    /// The limit of one call on the control socket.
    pub fn call(&self) -> Duration {
        Duration::from_secs(self.call)
    }

    pub(crate) fn delete(&self) -> Duration {
        Duration::from_secs(self.delete)
    }
}

#[cfg(test)]
impl Settings {
    /// Those of a handler's file that sets nothing.
    pub(crate) fn example() -> Self {
        Self {
            platform: Platform::Systrap,
            network: Network::Sandbox,
            overlay2: "root:self".to_owned(),
            debug: false,
            debug_log: None,
            oci_seccomp: true,
            host_uds: HostUds::None,
            file_access: FileAccess::Exclusive,
            directfs: true,
            flags: BTreeMap::new(),
            timeouts: Timeouts::default(),
        }
    }
}
