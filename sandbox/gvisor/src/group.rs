//! The sandbox's control group: what its containers may use together, and what they used.

use std::collections::HashMap;

use parking_lot::Mutex;
use runsc::{Event, GuestInterface};
use sandbox_core::{Interface, Resources, Stats};
use sandbox_host::cgroup::{self, Cgroup, CgroupError};

use crate::limits::{self, CPU_PERIOD, Limits};
use crate::usage::CpuShares;

/// A sandbox's group.
#[derive(Debug)]
pub(crate) struct Group {
    /// `None` where the sandbox has no group of its own: then nothing can be limited.
    cgroup: Option<Cgroup>,
    /// Bytes for the sandbox itself.
    overhead: u64,
    /// Processes that had been killed for memory when the sandbox started.
    oom_kills: u64,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    limits: HashMap<String, Limits>,
    applied: Limits,
    shares: CpuShares,
}

impl Group {
    /// The group that `cgroups_path` (of the OCI specification) names, if this process is in it
    /// and so every process of the sandbox will be.
    pub(crate) fn joined(cgroups_path: Option<&str>, overhead: u64) -> Self {
        let own = std::process::id();
        let ours = |group: &Cgroup| group.processes().is_ok_and(|pids| pids.contains(&own));
        let cgroup = cgroups_path.and_then(|path| Cgroup::new(path).ok()).filter(ours);
        let oom_kills = cgroup.as_ref().and_then(Cgroup::oom_kills).unwrap_or(0);
        Self { cgroup, overhead, oom_kills, books: Mutex::default() }
    }

    /// The group of the host, if there is one.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Counts container `id` with the limits of `resources`.
    pub(crate) fn enter(&self, id: &str, resources: Option<&Resources>) -> Result<(), CgroupError> {
        let limits = resources.map(Limits::of).unwrap_or_default();
        self.books.lock().limits.insert(id.to_owned(), limits);
        self.apply()
    }

    /// Changes container `id`'s limits.
    pub(crate) fn update(&self, id: &str, resources: &Resources) -> Result<(), CgroupError> {
        {
            let mut books = self.books.lock();
            let limits = books.limits.entry(id.to_owned()).or_default();
            *limits = limits.updated(resources);
        }
        self.apply()
    }

    /// Stops counting container `id`.
    pub(crate) fn leave(&self, id: &str) -> Result<(), CgroupError> {
        self.books.lock().limits.remove(id);
        self.apply()
    }

    /// Puts the sum of all limits on the group.
    fn apply(&self) -> Result<(), CgroupError> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        let mut books = self.books.lock();
        let wanted = limits::sum(&books.limits, self.overhead);
        if wanted == books.applied {
            return Ok(());
        }
        let bytes = |n: Option<u64>| n.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
        let changed = |new: Option<u64>, old: Option<u64>| (new != old).then(|| bytes(new));
        let memory = changed(wanted.memory, books.applied.memory);
        let quota = changed(wanted.cpu_quota, books.applied.cpu_quota);
        cgroup.limit(&cgroup::Limits {
            memory,
            memory_swap: memory,
            cpu_shares: wanted.cpu_shares.filter(|_| wanted.cpu_shares != books.applied.cpu_shares),
            cpu_quota: quota,
            cpu_period: quota.map(|_| CPU_PERIOD),
            pids: None,
        })?;
        books.applied = wanted;
        Ok(())
    }

    /// Whether the kernel has killed a process of the sandbox for memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let kills = self.cgroup.as_ref().and_then(Cgroup::oom_kills);
        kills.is_some_and(|now| now > self.oom_kills)
    }

    /// What container `id` uses: its own part as far as the sentry reports it, and for `root`, the
    /// container that the sandbox was launched with, the rest of the whole. `event` is `id`'s own, `guest`
    /// every running container's CPU time, `members` the memory of the containers beside `root`.
    pub(crate) fn stats(
        &self,
        id: &str,
        root: &str,
        event: &Event,
        guest: &HashMap<String, u64>,
        members: u64,
    ) -> Stats {
        let whole = self.cgroup.as_ref().map(Cgroup::stats).unwrap_or_default();
        let mut books = self.books.lock();
        if let Some(host) = whole.cpu_total_ns {
            books.shares.look(host, guest, root);
        }
        let cpu = match whole.cpu_total_ns {
            Some(_) => Some(books.shares.of(id)),
            None => guest.get(id).copied(),
        };
        let alone = id == root && members == 0;
        let memory = match (id == root, whole.memory_usage) {
            (true, Some(all)) => all.saturating_sub(members),
            (true, None) | (false, _) => event.memory,
        };
        let limit = books.limits.get(id).and_then(|limits| limits.memory);
        let own = Stats {
            cpu_total_ns: cpu,
            memory_usage: Some(memory),
            memory_limit: limit,
            pids: Some(event.pids),
            oom_kills: whole.oom_kills,
            network: event.interfaces.iter().map(interface).collect(),
            ..Stats::default()
        };
        if alone {
            // No other container shares the group: the kernel's finer figures are all its own.
            Stats { pids_limit: None, memory_limit: own.memory_limit, ..merge(whole, own) }
        } else {
            own
        }
    }
}

/// `whole`, with the values that `own` has more precisely.
fn merge(whole: Stats, own: Stats) -> Stats {
    Stats {
        cpu_total_ns: own.cpu_total_ns.or(whole.cpu_total_ns),
        pids: own.pids,
        network: own.network,
        memory_usage: own.memory_usage,
        ..whole
    }
}

fn interface(guest: &GuestInterface) -> Interface {
    Interface {
        name: guest.name.clone(),
        rx_bytes: guest.rx_bytes,
        rx_packets: guest.rx_packets,
        rx_errors: guest.rx_errors,
        rx_dropped: guest.rx_dropped,
        tx_bytes: guest.tx_bytes,
        tx_packets: guest.tx_packets,
        tx_errors: guest.tx_errors,
        tx_dropped: guest.tx_dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_group_the_sentrys_figures_stand() {
        let group = Group::joined(None, 1);
        let resources = serde_json::from_value(serde_json::json!({"memory": {"limit": 4096}}));
        group.enter("a", Some(&resources.unwrap())).unwrap();
        let event = Event { memory: 77, pids: 2, ..Event::default() };
        let guest = [("a".to_owned(), 500)].into();
        let stats = group.stats("a", "pod", &event, &guest, 77);
        assert_eq!((stats.cpu_total_ns, stats.memory_usage), (Some(500), Some(77)));
        assert_eq!((stats.memory_limit, stats.pids), (Some(4096), Some(2)));
        group.leave("a").unwrap();
        assert_eq!(group.stats("a", "pod", &event, &guest, 77).memory_limit, None);
        assert!(!group.oom_killed());
    }

    #[test]
    fn a_group_that_this_process_is_not_in_is_left_alone() {
        let group = Group::joined(Some("/surely/not/there"), 1);
        assert!(group.cgroup.is_none());
    }
}
