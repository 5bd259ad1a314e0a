//! One sandbox, several containers with limits of their own: what the sandbox's cgroup gets.

use std::collections::HashMap;

use sandbox_core::Resources;

/// The period of CPU quotas, in microseconds.
pub(crate) const CPU_PERIOD: u64 = 100_000;

/// What one container may use; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Microseconds per [`CPU_PERIOD`].
    pub(crate) cpu_quota: Option<u64>,
    /// Relative weight, 1024 being one CPU's worth.
    pub(crate) cpu_shares: Option<u64>,
}

impl Limits {
    /// The limits in `resources`. Limits on processes are the guest's affair: the sentry's own
    /// threads would count.
    pub(crate) fn of(resources: &Resources) -> Self {
        let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        let cpu = resources.cpu().as_ref();
        let period = cpu.and_then(|c| c.period()).filter(|p| *p > 0).unwrap_or(CPU_PERIOD);
        let quota = positive(cpu.and_then(|c| c.quota()));
        Self {
            memory: positive(resources.memory().as_ref().and_then(|m| m.limit())),
            cpu_quota: quota.map(|q| {
                let scaled = u128::from(q) * u128::from(CPU_PERIOD) / u128::from(period);
                u64::try_from(scaled).unwrap_or(u64::MAX)
            }),
            cpu_shares: cpu.and_then(|c| c.shares()).filter(|s| *s > 0),
        }
    }

    /// `self` with what `change` names put in its place (an update names only what changes).
    /// A negative number takes a limit off.
    pub(crate) fn updated(self, change: &Resources) -> Self {
        let new = Self::of(change);
        let memory = change.memory().as_ref().and_then(|m| m.limit()).filter(|n| *n != 0);
        let quota = change.cpu().as_ref().and_then(|c| c.quota()).filter(|n| *n != 0);
        Self {
            memory: if memory.is_some() { new.memory } else { self.memory },
            cpu_quota: if quota.is_some() { new.cpu_quota } else { self.cpu_quota },
            cpu_shares: new.cpu_shares.or(self.cpu_shares),
        }
    }
}

/// What each container after the first one costs the sandbox, in bytes: a gofer of its own
/// (measured: 4 MiB of its memory, 2 MiB of files).
const GOFER: u64 = 6 << 20;
/// The sentry's own books grow with what its guests use: this part of it.
const BOOKS: u64 = 32;

/// The limits of a sandbox that holds `containers`: sums, where every container has a limit. The
/// sandbox itself gets memory on top: `overhead` bytes with one container, more with each other
/// and with what they may use. Without any container there is no limit.
pub(crate) fn sum(containers: &HashMap<String, Limits>, overhead: u64) -> Limits {
    let total = |part: fn(&Limits) -> Option<u64>| {
        let parts: Option<Vec<u64>> = containers.values().map(part).collect();
        let parts = parts.filter(|p| !p.is_empty())?;
        Some(parts.into_iter().fold(0, u64::saturating_add))
    };
    let gofers = (containers.len() as u64).saturating_sub(1).saturating_mul(GOFER);
    Limits {
        memory: total(|l| l.memory).map(|n| n.saturating_add(overhead + gofers + n / BOOKS)),
        cpu_quota: total(|l| l.cpu_quota),
        cpu_shares: total(|l| l.cpu_shares),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: serde_json::Value) -> Resources {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn quotas_are_brought_to_one_period() {
        let limits = Limits::of(&resources(serde_json::json!({
            "memory": {"limit": 1000}, "cpu": {"quota": 5000, "period": 10000, "shares": 2}
        })));
        let expected = Limits { memory: Some(1000), cpu_quota: Some(50_000), cpu_shares: Some(2) };
        assert_eq!(limits, expected);
        let none = resources(serde_json::json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}));
        assert_eq!(Limits::of(&none), Limits::default());
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let old = Limits { memory: Some(1), cpu_quota: Some(2), cpu_shares: Some(3) };
        let change = resources(serde_json::json!({"memory": {"limit": 9}}));
        assert_eq!(old.updated(&change), Limits { memory: Some(9), ..old });
        let off = resources(serde_json::json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}));
        let expected = Limits { memory: None, cpu_quota: None, cpu_shares: Some(3) };
        assert_eq!(old.updated(&off), expected);
    }

    #[test]
    fn one_container_without_a_limit_means_none() {
        let a = Limits { memory: Some(64), cpu_quota: Some(10), cpu_shares: Some(2) };
        let b = Limits { memory: None, ..a };
        let both: HashMap<_, _> = [("a".to_owned(), a), ("b".to_owned(), b)].into();
        let expected = Limits { memory: None, cpu_quota: Some(20), cpu_shares: Some(4) };
        assert_eq!(sum(&both, 7), expected);
        let one: HashMap<_, _> = [("a".to_owned(), a)].into();
        assert_eq!(sum(&one, 7).memory, Some(64 + 64 / BOOKS + 7));
        let two: HashMap<_, _> = [("a".to_owned(), a), ("c".to_owned(), a)].into();
        assert_eq!(sum(&two, 7).memory, Some(128 + 128 / BOOKS + 7 + GOFER));
        assert_eq!(sum(&HashMap::new(), 7), Limits::default());
    }
}
