//! Which cases are played on which containerd under which handler.

use crate::bed::handler::Handler;
use crate::bed::version::Version;
use crate::cases::{self, Case};

/// A choice of cases that `hack/test` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// What guards every commit.
    Commit,
    /// Everything.
    Full,
}

impl Tier {
    /// Every tier.
    pub(crate) const ALL: [Self; 2] = [Self::Commit, Self::Full];

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Full => "full",
        }
    }

    /// For each handler, which cases are played on the versions of [`Version::ALL`].
    fn table(self) -> [(Handler, [Depth; 3]); 4] {
        use Depth::{Off, Thin, Whole};
        match self {
            // runc is the control of the cases, not of a containerd.
            Self::Commit => [
                (Handler::Runc, [Off, Off, Whole]),
                (Handler::Gvisor, [Thin, Thin, Whole]),
                (Handler::GvisorNew, [Thin, Thin, Whole]),
                (Handler::KataContainers, [Thin, Thin, Whole]),
            ],
            // An emulated processor takes its time.
            Self::Full => [
                (Handler::Runc, [Whole; 3]),
                (Handler::Gvisor, [Whole; 3]),
                (Handler::GvisorNew, [Whole; 3]),
                (Handler::KataContainers, [Thin, Whole, Whole]),
            ],
        }
    }
}

/// How many of the cases are played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    Off,
    /// Those of [`cases::VERSION_DEPENDENT`].
    Thin,
    Whole,
}

/// The cases of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    stages: Vec<(Version, Vec<(Handler, Depth)>)>,
    filters: Vec<String>,
}

impl Plan {
    /// The cases whose name holds one of `filters` (all if empty), on `versions` under `handlers`;
    /// an empty list stands for every one that `tier` has. Without a tier, handlers that are named
    /// play every case, and otherwise the full tier counts.
    pub(crate) fn new(
        versions: &[Version],
        handlers: &[Handler],
        tier: Option<Tier>,
        filters: Vec<String>,
    ) -> Self {
        let table = match (tier, handlers) {
            (None, [_, ..]) => {
                handlers.iter().map(|handler| (*handler, [Depth::Whole; 3])).collect()
            }
            (tier, _) => tier.unwrap_or(Tier::Full).table().to_vec(),
        };
        let mut stages = Vec::new();
        for (column, version) in Version::ALL.into_iter().enumerate() {
            if !versions.is_empty() && !versions.contains(&version) {
                continue;
            }
            let played = table
                .iter()
                .filter(|(handler, _)| handlers.is_empty() || handlers.contains(handler))
                .map(|(handler, depths)| (*handler, depths[column]))
                .collect();
            stages.push((version, played));
        }
        Self { stages, filters }
    }

    /// The cases of each containerd in the order in which they are played.
    pub(crate) fn stages(&self) -> Vec<(Version, Vec<(Handler, Case)>)> {
        let mut stages = Vec::new();
        for (version, handlers) in &self.stages {
            let mut played = Vec::new();
            for (handler, depth) in handlers {
                let wanted =
                    cases::all().filter(|case| self.wants(*version, *handler, *depth, case));
                played.extend(wanted.map(|case| (*handler, case)));
            }
            stages.push((*version, played));
        }
        stages
    }

    /// The names of all the cases.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (version, played) in self.stages() {
            names.extend(played.iter().map(|(handler, case)| full_name(version, *handler, case)));
        }
        names
    }

    /// The handlers that have a case to play.
    pub(crate) fn handlers(&self) -> Vec<Handler> {
        let played = self.stages().into_iter().flat_map(|(_, played)| played);
        let mut handlers: Vec<Handler> = played.map(|(handler, _)| handler).collect();
        handlers.dedup();
        handlers
    }

    fn wants(&self, version: Version, handler: Handler, depth: Depth, case: &Case) -> bool {
        let in_depth = match depth {
            Depth::Off => false,
            Depth::Thin => cases::VERSION_DEPENDENT.contains(&case.name),
            Depth::Whole => true,
        };
        let name = full_name(version, handler, case);
        in_depth
            && (self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter)))
    }
}

/// `CONTAINERD/HANDLER/CASE`.
pub(crate) fn full_name(version: Version, handler: Handler, case: &Case) -> String {
    format!("{}/{}/{}", version.label(), handler.name(), case.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(handlers: &[Handler], tier: Option<Tier>, filters: &[&str]) -> Vec<String> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Plan::new(&[], handlers, tier, filters).names()
    }

    #[test]
    fn a_commit_is_guarded_by_whole_suites_on_the_newest_containerd() {
        let all = cases::all().count();
        let commit = names(&[], Some(Tier::Commit), &[]);
        let count = |start: &str| commit.iter().filter(|name| name.starts_with(start)).count();
        for handler in ["runc", "gvisor", "gvisor-new", "kata-containers"] {
            assert_eq!(count(&format!("2.1/{handler}/")), all, "{handler}");
        }
        for version in ["1.6", "1.7"] {
            assert_eq!(count(&format!("{version}/runc/")), 0);
            for handler in ["gvisor", "gvisor-new", "kata-containers"] {
                let thin = count(&format!("{version}/{handler}/"));
                assert_eq!(thin, cases::VERSION_DEPENDENT.len(), "{version}/{handler}");
            }
        }
        let full = names(&[], Some(Tier::Full), &[]);
        assert!(commit.iter().all(|name| full.contains(name)));
        assert_eq!(names(&[], None, &[]), full);
    }

    #[test]
    fn handlers_and_words_choose() {
        let tier = Some(Tier::Commit);
        let only = names(&[Handler::Runc], tier, &["1.7", "/pause_and_resume"]);
        assert_eq!(only, ["2.1/runc/pause_and_resume"]);
        let named = names(&[Handler::KataContainers], None, &["/pause_and_resume"]);
        assert_eq!(named.len(), 3, "{named:?}");
        let plan = Plan::new(&[Version::V16], &[], tier, vec!["1.6/kata".to_owned()]);
        assert_eq!(plan.handlers(), [Handler::KataContainers]);
    }
}
