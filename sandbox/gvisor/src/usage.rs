//! Splits what a sandbox's cgroup used among its containers. The host sees one process; only the
//! sentry knows which container it worked for, in steps of its clock.

use std::collections::HashMap;

/// The step of the sentry's clock (`linux.ClockTick` in `pkg/sentry/kernel`), in nanoseconds: a
/// container that used less is measured as idle, although it ran to start.
const TICK: u64 = 10_000_000;

/// CPU time by container, in nanoseconds. What the sandbox used between two looks is shared out
/// by what the sentry measured for each container in that time, so that a container's counter never
/// runs backwards and all counters add up to what the host charged. A container that starts
/// within a step of the sentry's clock is charged one step for it: CRI's clients take a counter of
/// 0 for one that is missing.
#[derive(Debug, Default)]
pub(crate) struct CpuShares {
    host: u64,
    seen: HashMap<String, u64>,
    shared: HashMap<String, u64>,
}

impl CpuShares {
    /// Takes a look: `host` is the cgroup's counter, `guest` the sentry's by container. `root` is
    /// the sandbox's own container, which gets what no other container used.
    pub(crate) fn look(&mut self, host: u64, guest: &HashMap<String, u64>, root: &str) {
        let mut spent = host.saturating_sub(self.host);
        self.host = self.host.max(host);
        for (id, now) in guest {
            if *now == 0 && id != root && !self.shared.contains_key(id) {
                let step = TICK.min(spent);
                spent -= step;
                self.shared.insert(id.clone(), step);
            }
        }
        let used: Vec<(&String, u64)> = guest
            .iter()
            .map(|(id, now)| (id, now.saturating_sub(self.seen.get(id).copied().unwrap_or(0))))
            .collect();
        let total: u128 = used.iter().map(|(_, n)| u128::from(*n)).sum();
        let mut left = spent;
        for (id, part) in used.iter().filter(|(_, part)| *part > 0) {
            let share = u128::from(spent) * u128::from(*part) / total.max(1);
            let share = u64::try_from(share).unwrap_or(left).min(left);
            *self.shared.entry((*id).clone()).or_default() += share;
            left -= share;
        }
        *self.shared.entry(root.to_owned()).or_default() += left;
        for (id, now) in guest {
            let seen = self.seen.entry(id.clone()).or_default();
            *seen = (*seen).max(*now);
        }
    }

    /// What container `id` was charged so far.
    pub(crate) fn of(&self, id: &str) -> u64 {
        self.shared.get(id).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(list: &[(&str, u64)]) -> HashMap<String, u64> {
        list.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect()
    }

    #[test]
    fn shares_follow_the_work_and_add_up() {
        let mut shares = CpuShares::default();
        shares.look(1000, &guest(&[("pod", 0), ("a", 10), ("b", 30)]), "pod");
        assert_eq!((shares.of("a"), shares.of("b"), shares.of("pod")), (250, 750, 0));
        shares.look(1600, &guest(&[("pod", 0), ("a", 10), ("b", 30)]), "pod");
        assert_eq!((shares.of("a"), shares.of("b"), shares.of("pod")), (250, 750, 600));
        // `b` exited and left the sentry's list; `a` alone worked.
        shares.look(2600, &guest(&[("pod", 0), ("a", 20)]), "pod");
        assert_eq!((shares.of("a"), shares.of("b"), shares.of("pod")), (1250, 750, 600));
    }

    #[test]
    fn a_container_that_only_started_is_charged_a_step_once() {
        let mut shares = CpuShares::default();
        shares.look(50_000_000, &guest(&[("pod", 0), ("a", 0)]), "pod");
        assert_eq!((shares.of("a"), shares.of("pod")), (TICK, 40_000_000));
        shares.look(50_000_400, &guest(&[("pod", 0), ("a", 0), ("b", 0)]), "pod");
        assert_eq!((shares.of("a"), shares.of("b"), shares.of("pod")), (TICK, 400, 40_000_000));
    }

    #[test]
    fn no_counter_runs_backwards() {
        let mut shares = CpuShares::default();
        shares.look(1000, &guest(&[("a", 50)]), "pod");
        shares.look(900, &guest(&[("a", 40)]), "pod");
        assert_eq!(shares.of("a"), 1000);
        shares.look(u64::MAX, &guest(&[("a", u64::MAX), ("b", u64::MAX)]), "pod");
        let all = shares.of("a") as u128 + shares.of("b") as u128 + shares.of("pod") as u128;
        assert_eq!(all, u128::from(u64::MAX));
    }
}
