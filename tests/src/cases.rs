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
}
