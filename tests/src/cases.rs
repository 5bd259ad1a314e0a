//! What must be true of a Pod, whoever runs it. Each case is one function, played on every
//! containerd and under every handler that it makes sense for.

use std::time::Duration;

use anyhow::Result;

use crate::client::stage::Stage;

mod basics;
mod crashes;
mod direct;
mod faults;
mod images;
mod isolation;
mod monitors;
mod network;
mod policy;
mod resources;
mod streams;
mod survival;
mod tasks;
mod terminals;
mod verbs;
mod volumes;

/// One thing that must be true.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name within `CONTAINERD/HANDLER/`.
    pub name: &'static str,
    /// Plays it; an error says what was not so.
    pub play: fn(&Stage) -> Result<()>,
    /// How long it may take.
    pub deadline: Duration,
}

/// A case from a function, named as the function is.
macro_rules! cases {
    ($($function:ident),* $(,)?) => {
        &[$($crate::cases::Case {
            name: stringify!($function),
            play: $function,
            deadline: std::time::Duration::from_secs(120),
        }),*]
    };
}
use cases;

/// The cases that are played on every containerd for every commit; the others only on the newest
/// one. The rule: a case is here where containerd does its part by other code in each line of
/// releases, such as how it starts a shim, connects to it again, or passes options; what only the
/// shim and its backend do is not.
pub const VERSION_DEPENDENT: [&str; 14] = [
    // How a shim is started, what it answers, and what a container is mounted on.
    "pod_of_two_containers",
    "ctr_run_keeps_to_its_flags",
    "container_restarts_in_its_pod",
    // Whose fifos they are, and who closes them.
    "logs_keep_streams_and_order",
    "exec_streams_and_exit_codes",
    "exec_with_a_terminal",
    "events_come_in_order",
    // Finding a shim again, or its end.
    "containerd_killed_while_a_pod_runs",
    "exit_while_containerd_is_down",
    "shim_killed",
    // The form of updates and of figures.
    "memory_update_takes_effect",
    "stats_tell_cpu_and_memory",
    // CRI's own: credentials of a pull, and a stream into a network namespace.
    "private_image",
    "port_forward",
];

/// Every case there is.
pub fn all() -> impl Iterator<Item = Case> {
    let groups = [
        basics::CASES,
        terminals::CASES,
        tasks::CASES,
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
        monitors::CASES,
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
