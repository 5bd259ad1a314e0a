//! The specs of the suite that are known not to pass, and the differences of a run from them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::suite::{End, Spec};
use crate::bed::handler::Handler;
use crate::bed::version::Version;

/// The list for every handler.
const EVERYWHERE: &str = include_str!("../../critest/all.toml");

/// Why a spec does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Why {
    /// It asks for something that a sandbox has to prevent.
    Sandbox,
    /// It could pass; Bulkhead lacks something.
    Gap,
    /// The runtime below (runsc, the guest's kernel) does not support it.
    Runtime,
    /// containerd or the suite does not support it.
    Containerd,
    /// This machine lacks something; on another it may pass.
    Machine,
    /// Another kind of run has it.
    Elsewhere,
}

impl Why {
    /// As in a table.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Sandbox => "the sandbox's nature",
            Self::Gap => "a gap",
            Self::Runtime => "the runtime below",
            Self::Containerd => "containerd",
            Self::Machine => "the machine",
            Self::Elsewhere => "another run",
        }
    }
}

/// The result of a known spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Known {
    Failed,
    Skipped,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    end: Known,
    why: Why,
    cause: String,
    #[serde(default)]
    containerd: Vec<String>,
    #[serde(default)]
    nri: bool,
    #[serde(default)]
    sometimes: bool,
    specs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    known: Vec<RawEntry>,
}

/// What is known of one spec.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    end: Known,
    /// It may as well pass.
    sometimes: bool,
    pub(super) why: Why,
    pub(super) text: String,
}

/// The specs that are known not to pass in one kind of run.
#[derive(Debug, Default)]
pub(super) struct List(BTreeMap<String, Cause>);

impl List {
    /// What is known of `handler` on containerd `version`; `nri` is a run of NRI's specs.
    pub(super) fn of(handler: Handler, version: Version, nri: bool) -> Result<Self> {
        let own = match handler {
            Handler::Runc => include_str!("../../critest/runc.toml"),
            Handler::Gvisor => include_str!("../../critest/gvisor.toml"),
            Handler::GvisorNew => include_str!("../../critest/gvisor-new.toml"),
            // A peer's shim is measured only.
            Handler::GvisorGo => return Ok(Self::default()),
            Handler::KataContainers => include_str!("../../critest/kata-containers.toml"),
        };
        let mut list = Self::default();
        for (file, text) in [("all", EVERYWHERE), (handler.name(), own)] {
            list.add(text, version, nri).with_context(|| format!("tests/critest/{file}.toml"))?;
        }
        Ok(list)
    }

    fn add(&mut self, text: &str, version: Version, nri: bool) -> Result<()> {
        let raw: RawList = toml::from_str(text)?;
        for entry in raw.known {
            ensure!(!entry.cause.trim().is_empty(), "no cause for {:?}", entry.specs);
            for label in &entry.containerd {
                ensure!(Version::named(label).is_some(), "containerd {label:?} is not known");
            }
            let here =
                |labels: &[String]| labels.is_empty() || labels.contains(&version.label().into());
            if entry.nri != nri || !here(&entry.containerd) {
                continue;
            }
            for name in entry.specs {
                let cause = Cause {
                    end: entry.end,
                    sometimes: entry.sometimes || entry.why == Why::Machine,
                    why: entry.why,
                    text: entry.cause.clone(),
                };
                let twice = self.0.insert(name.clone(), cause);
                ensure!(twice.is_none(), "{name:?} is named twice");
            }
        }
        Ok(())
    }

    /// What is known of the spec `name`.
    pub(super) fn cause(&self, name: &str) -> Option<&Cause> {
        self.0.get(name)
    }

    /// The difference of `spec`'s result from the list, if any.
    pub(super) fn verdict(&self, spec: &Spec) -> Option<String> {
        let known = self.cause(&spec.name).map(|cause| (cause.end, cause.sometimes));
        match (&spec.end, known) {
            (End::Unchosen, _)
            | (End::Passed, None | Some((_, true)))
            | (End::Failed(_), Some((Known::Failed, _)))
            | (End::Skipped(_), Some((Known::Skipped, _))) => None,
            (End::Passed, Some(_)) => Some("passes now: take it off the list".to_owned()),
            (End::Failed(text), Some((Known::Skipped, _))) => {
                Some(format!("fails, and was skipped: {text}"))
            }
            (End::Failed(text), None) => Some(text.clone()),
            (End::Skipped(text), Some((Known::Failed, _))) => {
                Some(format!("is skipped, and failed before: {text}"))
            }
            (End::Skipped(text), None) => Some(format!("is skipped, and not on the list: {text}")),
        }
    }

    /// The names on the list that no spec of the suite has.
    pub(super) fn unheard_of(&self, specs: &[Spec]) -> Vec<&str> {
        let heard = |name: &&str| specs.iter().any(|spec| spec.name == **name);
        self.0.keys().map(String::as_str).filter(|name| !heard(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[[known]]\nend = \"failed\"\nwhy = \"sandbox\"\ncause = \"no host\"\n\
        specs = [\"a\"]\n\
        [[known]]\nend = \"skipped\"\nwhy = \"machine\"\ncause = \"no LSM\"\nspecs = [\"b\"]\n\
        [[known]]\nend = \"failed\"\nwhy = \"gap\"\ncause = \"old\"\ncontainerd = [\"1.7\"]\n\
        specs = [\"c\"]\n\
        [[known]]\nend = \"failed\"\nwhy = \"gap\"\ncause = \"n\"\nnri = true\nspecs = [\"a\"]\n";

    fn list(version: Version) -> List {
        let mut list = List::default();
        list.add(TEXT, version, false).unwrap();
        list
    }

    fn spec(name: &str, end: End) -> Spec {
        Spec { name: name.to_owned(), end }
    }

    fn failed() -> End {
        End::Failed("failed: x".to_owned())
    }

    fn skipped() -> End {
        End::Skipped("y".to_owned())
    }

    #[test]
    fn what_ends_as_listed_is_no_news() {
        let list = list(Version::V21);
        let specs = [
            spec("a", failed()),
            spec("a", End::Unchosen),
            spec("b", skipped()),
            spec("d", End::Passed),
        ];
        for spec in specs {
            assert_eq!(list.verdict(&spec), None, "{spec:?}");
        }
    }

    #[test]
    fn every_other_end_is_told() {
        let list = list(Version::V21);
        let verdict = |name, end| list.verdict(&spec(name, end)).unwrap();
        assert!(verdict("a", End::Passed).contains("passes now"));
        assert!(verdict("a", skipped()).contains("failed before"));
        assert!(verdict("b", failed()).contains("was skipped"));
        assert!(verdict("d", failed()).contains("failed: x"));
        assert!(verdict("d", skipped()).contains("not on the list"));
    }

    #[test]
    fn what_another_machine_has_may_pass_there() {
        assert_eq!(list(Version::V21).verdict(&spec("b", End::Passed)), None);
    }

    #[test]
    fn what_passes_sometimes_is_no_news_either_way() {
        let mut list = List::default();
        let text = "[[known]]\nend = \"skipped\"\nwhy = \"containerd\"\ncause = \"a race\"\n\
            sometimes = true\nspecs = [\"a\"]\n";
        list.add(text, Version::V21, false).unwrap();
        assert_eq!(list.verdict(&spec("a", End::Passed)), None);
        assert_eq!(list.verdict(&spec("a", skipped())), None);
        assert!(list.verdict(&spec("a", failed())).is_some());
    }

    #[test]
    fn containerds_differ() {
        assert!(list(Version::V17).verdict(&spec("c", failed())).is_none());
        assert!(list(Version::V21).verdict(&spec("c", failed())).is_some());
    }

    #[test]
    fn a_name_that_no_spec_has_is_found() {
        let specs = [spec("a", failed()), spec("z", End::Passed)];
        assert_eq!(list(Version::V21).unheard_of(&specs), ["b"]);
    }

    #[test]
    fn a_list_with_a_fault_is_refused() {
        let entry = |rest: &str| format!("[[known]]\nend = \"failed\"\nwhy = \"gap\"\n{rest}");
        let add =
            |text: &str| List::default().add(text, Version::V21, false).unwrap_err().to_string();
        assert!(add(&entry("cause = \" \"\nspecs = [\"a\"]")).contains("no cause"));
        assert!(add(&entry("cause = \"c\"\nspecs = [\"a\", \"a\"]")).contains("twice"));
        let version = "cause = \"c\"\ncontainerd = [\"9\"]\nspecs = [\"a\"]";
        assert!(add(&entry(version)).contains("\"9\""));
        assert!(add(&entry("cause = \"c\"\nspecs = []\nreason = \"\"")).contains("reason"));
    }

    #[test]
    fn the_lists_in_the_tree_are_sound() {
        for handler in Handler::ALL {
            for version in Version::ALL {
                for nri in [false, true] {
                    List::of(handler, version, nri).unwrap();
                }
            }
        }
    }
}
