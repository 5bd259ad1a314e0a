//! Limits on a Pod's group.

use super::error::CgroupError;
use super::file::write;
use super::group::{Cgroup, Version};
use crate::error::{Classified, Kind};

/// Limits to set on a group; `None` leaves a limit unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; -1 removes the limit.
    pub memory: Option<i64>,
    /// Memory plus swap, in bytes; -1 removes the limit.
    pub memory_swap: Option<i64>,
    /// v1's CPU shares (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; -1 removes the limit.
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds.
    pub cpu_period: Option<u64>,
    /// Processes and threads; -1 removes the limit.
    pub pids: Option<i64>,
}

/// The kernel's default period, in microseconds.
const PERIOD: u64 = 100_000;

impl Cgroup {
    /// Sets `limits`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`] names value and file; limits set before that stay in force.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        match self.version {
            Version::V1 => self.limit_v1(limits),
            Version::V2 => self.limit_v2(limits),
        }
    }

    fn limit_v1(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.limit_memory_v1(limits)?;
        let cpu = self.directory("cpu");
        if let Some(shares) = limits.cpu_shares {
            write(&cpu.join("cpu.shares"), &shares.to_string())?;
        }
        if let Some(period) = limits.cpu_period {
            write(&cpu.join("cpu.cfs_period_us"), &period.to_string())?;
        }
        if let Some(quota) = limits.cpu_quota {
            let quota = if quota <= 0 { -1 } else { quota };
            write(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())?;
        }
        match limits.pids {
            Some(pids) => write(&self.directory("pids").join("pids.max"), &max(pids)),
            None => Ok(()),
        }
    }

    /// The kernel refuses a memory limit above that of memory plus swap, so the order matters.
    fn limit_memory_v1(&self, limits: &Limits) -> Result<(), CgroupError> {
        let Some(memory) = limits.memory else { return Ok(()) };
        let directory = self.directory("memory");
        let plain = directory.join("memory.limit_in_bytes");
        let swap = directory.join("memory.memsw.limit_in_bytes");
        let with_swap = limits.memory_swap.filter(|_| swap.exists());
        let Some(total) = with_swap else { return write(&plain, &memory.to_string()) };
        match write(&plain, &memory.to_string()) {
            // Above the old total, which has to be raised first.
            Err(e) if e.kind() == Kind::InvalidArgument => {
                write(&swap, &total.to_string())?;
                write(&plain, &memory.to_string())
            }
            result => result.and_then(|()| write(&swap, &total.to_string())),
        }
    }

    fn limit_v2(&self, limits: &Limits) -> Result<(), CgroupError> {
        let directory = self.directory("memory");
        if let Some(memory) = limits.memory {
            write(&directory.join("memory.max"), &max(memory))?;
            let swap = directory.join("memory.swap.max");
            if let Some(total) = limits.memory_swap.filter(|_| swap.exists()) {
                let only_swap = if total < 0 || memory < 0 { -1 } else { (total - memory).max(0) };
                write(&swap, &max(only_swap))?;
            }
        }
        if let Some(shares) = limits.cpu_shares {
            write(&directory.join("cpu.weight"), &weight(shares).to_string())?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota = limits.cpu_quota.filter(|quota| *quota > 0).unwrap_or(-1);
            let period = limits.cpu_period.unwrap_or(PERIOD);
            write(&directory.join("cpu.max"), &format!("{} {period}", max(quota)))?;
        }
        match limits.pids {
            Some(pids) => write(&directory.join("pids.max"), &max(pids)),
            None => Ok(()),
        }
    }
}

/// A number, or `max` for no limit.
fn max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// v1's shares (2 to 262144) on v2's scale of weights (1 to 10000), linearly, as runc and
/// Kubernetes (KEP-2254) do.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!([2, 1024, 262_144, 0].map(weight), [1, 39, 10_000, 1]);
    }
}
