//! What must hold for a Pod under every handler. Each case is one function.

mod basics;
mod case;
mod crashes;
mod direct;
mod faults;
mod hooks;
mod images;
mod isolation;
mod network;
mod policy;
mod resources;
mod streams;
mod survival;
mod tasks;
mod terminals;
mod verbs;
mod vm_processes;
mod vmms;
mod volumes;

pub(crate) use self::case::Case;

/// The cases that are played on every containerd for every commit; the others only on the newest
/// one. The rule: a case is here where containerd does its part by other code in each line of
/// releases, such as how it starts a shim, connects to it again, or passes options; what only the
/// shim and its backend do is not.
pub(crate) const VERSION_DEPENDENT: [&str; 14] = [
    // How a shim is started, what it prints, and how a root file system is mounted.
    "pod_of_two_containers",
    "ctr_run_keeps_to_its_flags",
    "container_restarts_in_its_pod",
    // How stdio and events travel.
    "logs_keep_streams_and_order",
    "exec_streams_and_exit_codes",
    "exec_with_a_terminal",
    "events_come_in_order",
    // How containerd finds a shim again, or cleans up after it.
    "containerd_killed_while_a_pod_runs",
    "exit_while_containerd_is_down",
    "shim_killed",
    // The messages of updates and metrics.
    "memory_update_takes_effect",
    "stats_tell_cpu_and_memory",
    // CRI's own: credentials of a pull, and a stream into a network namespace.
    "private_image",
    "port_forward",
];

/// Every case there is.
pub(crate) fn all() -> impl Iterator<Item = Case> {
    let groups = [
        basics::CASES,
        terminals::CASES,
        tasks::CASES,
        hooks::CASES,
        streams::CASES,
        resources::CASES,
        isolation::CASES,
        network::CASES,
        policy::CASES,
        volumes::CASES,
        images::CASES,
        survival::CASES,
        faults::CASES,
        direct::CASES,
        verbs::CASES,
        crashes::CASES,
        vmms::CASES,
    ];
    groups.into_iter().flatten().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = all().map(|case| case.name).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), unique.len());
    }

    #[test]
    fn cases_that_depend_on_the_version_exist() {
        for name in VERSION_DEPENDENT {
            assert!(all().any(|case| case.name == name), "{name}");
        }
    }
}
