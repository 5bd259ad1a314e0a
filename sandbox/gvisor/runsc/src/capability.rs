//! Capability sets as gVisor's masks; their bits are those of `include/uapi/linux/capability.h`.

use oci_spec::runtime::{Capabilities as Names, Capability, LinuxCapabilities};
use serde::Serialize;

/// Capability sets as bit masks (`auth.TaskCapabilities`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// The limit of the effective and inheritable sets.
    #[serde(rename = "PermittedCaps")]
    pub permitted: u64,
    /// Kept when a program is run, as far as its file has them too.
    #[serde(rename = "InheritableCaps")]
    pub inheritable: u64,
    /// What the kernel checks.
    #[serde(rename = "EffectiveCaps")]
    pub effective: u64,
    /// The limit of what a program can gain.
    #[serde(rename = "BoundingCaps")]
    pub bounding: u64,
    /// Kept when an unprivileged program is run.
    #[serde(rename = "AmbientCaps")]
    pub ambient: u64,
}

impl Capabilities {
    /// The sets of `given` as masks. Guests keep `CAP_NET_RAW` only where raw sockets are on, as
    /// with runsc's own `exec`. Ambient capabilities are left out: the sentry does not know them.
    pub fn of(given: &LinuxCapabilities, net_raw: bool) -> Self {
        let mask = |set: &Option<Names>| {
            let names = set.iter().flatten();
            let kept = names.filter(|c| net_raw || **c != Capability::NetRaw);
            kept.map(|c| 1u64 << bit(*c)).fold(0, |all, one| all | one)
        };
        Self {
            permitted: mask(given.permitted()),
            inheritable: mask(given.inheritable()),
            effective: mask(given.effective()),
            bounding: mask(given.bounding()),
            ambient: 0,
        }
    }
}

fn bit(capability: Capability) -> u8 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_sockets_are_the_admins_choice() {
        let given: LinuxCapabilities = serde_json::from_value(serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_CHECKPOINT_RESTORE"],
            "effective": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        }))
        .unwrap();
        let kept = Capabilities::of(&given, true);
        assert_eq!(kept.bounding, 1 | 1 << 13 | 1 << 40);
        assert_eq!(kept.effective, 1 << 5);
        assert_eq!((kept.permitted, kept.inheritable, kept.ambient), (0, 0, 0));
        assert_eq!(Capabilities::of(&given, false).bounding, 1 | 1 << 40);
    }
}
