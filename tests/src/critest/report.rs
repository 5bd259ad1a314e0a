//! The results of runs as tables.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::list::List;
use super::suite::{End, Spec};

/// The sums of one run, and the programs of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sums {
    pub(super) handler: String,
    /// containerd's line of releases.
    pub(super) line: String,
    pub(super) containerd: String,
    pub(super) runtime: String,
    pub(super) critest: String,
    /// A day, as in `2026-01-31`.
    pub(super) date: String,
    pub(super) seconds: u64,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    /// NRI's specs, and no others, were run.
    pub(super) nri: bool,
}

impl Sums {
    /// Counts the results of `specs`, regardless of the list.
    pub(super) fn count(mut self, specs: &[Spec]) -> Self {
        let number = |wanted: fn(&End) -> bool| specs.iter().filter(|s| wanted(&s.end)).count();
        self.passed = number(|end| matches!(end, End::Passed));
        self.failed = number(|end| matches!(end, End::Failed(_)));
        self.skipped = match self.nri {
            // All others were not chosen.
            true => number(|end| matches!(end, End::Skipped(_))),
            false => specs.len() - self.passed - self.failed,
        };
        self
    }
}

/// Every spec that did not pass, with its cause by the list.
pub(super) fn details(sums: &Sums, specs: &[Spec], list: &List) -> String {
    let mut text = format!(
        "# {} on containerd {}\n\ncritest {}, {}, {}: {} passed, {} failed, {} skipped in {}.\n\n\
         | spec | result | why | cause |\n| --- | --- | --- | --- |\n",
        sums.handler,
        sums.containerd,
        sums.critest,
        sums.runtime,
        sums.date,
        sums.passed,
        sums.failed,
        sums.skipped,
        minutes(sums.seconds),
    );
    for spec in specs {
        let (result, message) = match &spec.end {
            End::Passed | End::Unchosen => continue,
            End::Failed(message) => ("failed", message),
            End::Skipped(message) => ("skipped", message),
        };
        let (why, cause) = match list.cause(&spec.name) {
            Some(cause) => (cause.why.label(), cause.text.as_str()),
            None => ("not on the list", message.as_str()),
        };
        let cells = [&spec.name, result, why, cause].map(cell);
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn cell(text: &str) -> String {
    let text: String = text.chars().take(300).collect();
    text.replace('|', "\\|").replace('\n', " ")
}

fn minutes(seconds: u64) -> String {
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

/// All runs side by side.
pub(super) fn summary(runs: &[Sums]) -> String {
    let mut text = String::from(
        "| handler | containerd | specs | passed | failed | skipped | took | runtime | critest | date |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for run in runs {
        let specs = if run.nri { "NRI" } else { "all but NRI" };
        text.push_str(&format!(
            "| {} | {} | {specs} | {} | {} | {} | {} | {} | {} | {} |\n",
            run.handler,
            run.containerd,
            run.passed,
            run.failed,
            run.skipped,
            minutes(run.seconds),
            cell(&run.runtime),
            run.critest,
            run.date,
        ));
    }
    text
}

/// The sums of every run in `dir`, newest containerd first.
pub(super) fn gather(dir: &Path) -> Result<Vec<Sums>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(SUMS) {
            let text = fs::read_to_string(&path)?;
            let sums: Sums =
                serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            runs.push(sums);
        }
    }
    let order = ["runc", "gvisor", "gvisor-new", "kata-containers", "gvisor-go"];
    runs.sort_by_key(|run: &Sums| {
        let at = order.iter().position(|name| *name == run.handler).unwrap_or(order.len());
        (run.nri, std::cmp::Reverse(run.line.clone()), at)
    });
    Ok(runs)
}

/// The suffix of files with sums.
pub(super) const SUMS: &str = ".sums.json";

const BEGIN: &str = "<!-- critest: written by hack/critest --readme -->\n";
const END: &str = "<!-- critest: end -->";

/// `readme` with `table` between the two marks.
pub(super) fn into_readme(readme: &str, table: &str) -> Result<String> {
    let missing = || format!("no place for the table: {BEGIN:?} and {END:?} must be there");
    let (before, rest) = readme.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(handler: &str, line: &str) -> Sums {
        let text = |s: &str| s.to_owned();
        Sums {
            handler: text(handler),
            line: text(line),
            containerd: text("2.1.9"),
            runtime: text("runc 1|2"),
            critest: text("v1"),
            date: text("2026-01-31"),
            seconds: 61,
            passed: 0,
            failed: 0,
            skipped: 0,
            nri: false,
        }
    }

    fn spec(name: &str, end: End) -> Spec {
        Spec { name: name.to_owned(), end }
    }

    #[test]
    fn every_spec_is_counted_once() {
        let specs = [
            spec("a", End::Passed),
            spec("b", End::Failed("x".into())),
            spec("c", End::Skipped("y".into())),
            spec("d", End::Unchosen),
        ];
        let sums = sums("runc", "2.1").count(&specs);
        assert_eq!((sums.passed, sums.failed, sums.skipped), (1, 1, 2));
        let nri = Sums { nri: true, ..sums.clone() }.count(&specs);
        assert_eq!((nri.passed, nri.failed, nri.skipped), (1, 1, 1));
        let text = details(&sums, &specs, &List::default());
        assert!(text.contains("| b | failed | not on the list | x |"), "{text}");
        assert!(!text.contains("| a |") && !text.contains("| d |"), "{text}");
    }

    #[test]
    fn a_cell_stays_a_cell() {
        let table = summary(&[sums("runc", "2.1")]);
        assert!(table.contains("| 1:01 min | runc 1\\|2 | v1 | 2026-01-31 |"), "{table}");
    }

    #[test]
    fn the_table_takes_the_place_of_the_last_one() {
        let readme = format!("a\n{BEGIN}old\n{END}\nb\n");
        let first = into_readme(&readme, "new\n").unwrap();
        assert_eq!(first, format!("a\n{BEGIN}\nnew\n\n{END}\nb\n"));
        assert_eq!(into_readme(&first, "new\n").unwrap(), first);
        assert!(into_readme("a", "new").is_err());
    }
}
