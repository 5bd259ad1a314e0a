//! The numbers as Markdown and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::memory::{Memory, PARTS};
use super::stats::{Samples, Summary};

/// By handler, then by role.
pub(super) type Memories = Vec<(&'static str, BTreeMap<&'static str, Memory>)>;

/// Bulkhead and gVisor's own shim, on one and the same runsc.
const OURS: &str = "gvisor-new";
const THEIRS: &str = "gvisor-go";

/// The most that a call may take, relative to gVisor's own shim.
fn aim(row: &str) -> Option<f64> {
    match row {
        "RunPodSandbox" | "StartContainer" => Some(0.75),
        // For the plain status containerd 2 calls no shim.
        "PodSandboxStatus, verbose" => Some(0.1),
        "StopContainer" | "StopPodSandbox" | "ExecSync true" => Some(0.5),
        _ => None,
    }
}

/// A table with one row per thing measured, `median (min–p90)` in each cell.
pub(super) fn table(
    title: &str,
    samples: &Samples,
    columns: &[&'static str],
    compared: bool,
) -> String {
    let mut head = vec![title.to_owned()];
    head.extend(columns.iter().map(|c| (*c).to_owned()));
    if compared {
        head.extend([format!("{OURS} / {THEIRS}"), "aim".to_owned()]);
    }
    let mut lines = vec![line(&head), rule(head.len())];
    for row in samples.rows() {
        let mut cells = vec![(*row).to_owned()];
        cells.extend(columns.iter().map(|column| cell(samples.summary(row, column))));
        if compared {
            let ratio = samples.ratio(row, OURS, THEIRS);
            cells.push(ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
            cells.push(aim(row).map_or(String::new(), |aim| format!("≤ {aim}")));
        }
        lines.push(line(&cells));
    }
    lines.join("\n")
}

fn cell(summary: Option<Summary>) -> String {
    let Some(Summary { min, median, p90, .. }) = summary else { return "-".to_owned() };
    let places = if median < 10.0 { 1 } else { 0 };
    format!("{median:.places$} ({min:.places$}–{p90:.places$})")
}

/// A table with one row per role in a Pod: `processes: PSS / private` in MiB.
pub(super) fn memory_table(memories: &Memories) -> String {
    let mut head = vec!["processes: PSS / private, MiB".to_owned()];
    head.extend(memories.iter().map(|(name, _)| (*name).to_owned()));
    head.push("aim".to_owned());
    let mut lines = vec![line(&head), rule(head.len())];
    for part in PARTS {
        let found = memories.iter().map(|(_, parts)| parts.get(part));
        if found.clone().all(|memory| memory.is_none()) {
            continue;
        }
        let mut cells = vec![part.to_owned()];
        cells.extend(found.map(memory_cell));
        cells.push(if part == "shim" { "1: ≤ 2.5 / ≤ 1.5".to_owned() } else { String::new() });
        lines.push(line(&cells));
    }
    lines.join("\n")
}

fn memory_cell(memory: Option<&Memory>) -> String {
    let Some(Memory { processes, pss, private }) = memory else { return "-".to_owned() };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let mebibytes = |kibibytes: u64| kibibytes as f64 / 1024.0;
    format!("{processes}: {:.1} / {:.1}", mebibytes(*pss), mebibytes(*private))
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn rule(columns: usize) -> String {
    format!("|{}", " --- |".repeat(columns))
}

/// Every number of `samples`, and its summary, by row and column.
pub(super) fn json(samples: &Samples, columns: &[&'static str]) -> Value {
    let mut rows = serde_json::Map::new();
    for row in samples.rows() {
        let mut cells = serde_json::Map::new();
        for column in columns {
            let Some(Summary { min, median, p90, count }) = samples.summary(row, column) else {
                continue;
            };
            let cell = json!({
                "min": min, "median": median, "p90": p90, "count": count,
                "values": samples.of(row, column),
            });
            cells.insert((*column).to_owned(), cell);
        }
        rows.insert((*row).to_owned(), cells.into());
    }
    rows.into()
}

/// The memory by role of each handler's Pod, in KiB.
pub(super) fn memory_json(memories: &Memories) -> Value {
    let part = |memory: &Memory| json!({ "processes": memory.processes, "pss": memory.pss, "private": memory.private });
    let of = |parts: &BTreeMap<&'static str, Memory>| -> Value {
        let parts = parts.iter().map(|(name, memory)| ((*name).to_owned(), part(memory)));
        parts.collect::<serde_json::Map<_, _>>().into()
    };
    let handlers = memories.iter().map(|(name, parts)| ((*name).to_owned(), of(parts)));
    handlers.collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut samples = Samples::default();
        samples.add("PodSandboxStatus, verbose", OURS, 2.04);
        samples.add("PodSandboxStatus, verbose", THEIRS, 34.0);
        samples.add("CreateContainer", OURS, 100.4);
        samples
    }

    #[test]
    fn a_table_is_markdown_with_ratios_and_aims() {
        let expected = "| ms | gvisor-new | gvisor-go | gvisor-new / gvisor-go | aim |\n\
            | --- | --- | --- | --- | --- |\n\
            | PodSandboxStatus, verbose | 2.0 (2.0–2.0) | 34 (34–34) | 0.06 | ≤ 0.1 |\n\
            | CreateContainer | 100 (100–100) | - | - |  |";
        assert_eq!(table("ms", &samples(), &[OURS, THEIRS], true), expected);
        let plain = table("ms", &samples(), &[OURS], false);
        assert!(plain.starts_with("| ms | gvisor-new |\n| --- | --- |\n"), "{plain}");
    }

    #[test]
    fn json_has_what_was_measured_and_no_more() {
        let value = json(&samples(), &[OURS, THEIRS]);
        assert_eq!(value["PodSandboxStatus, verbose"][THEIRS]["median"], 34.0);
        assert_eq!(value["CreateContainer"][OURS]["values"], json!([100.4]));
        assert!(value["CreateContainer"].get(THEIRS).is_none());
    }

    #[test]
    fn memory_is_told_by_part() {
        let shim = Memory { processes: 1, pss: 2560, private: 1024 };
        let memories: Memories = vec![("gvisor", [("shim", shim)].into()), ("runc", [].into())];
        let text = memory_table(&memories);
        assert!(text.ends_with("\n| shim | 1: 2.5 / 1.0 | - | 1: ≤ 2.5 / ≤ 1.5 |"), "{text}");
        assert_eq!(memory_json(&memories)["gvisor"]["shim"]["pss"], 2560);
    }
}
