//! The suite's report, spec by spec.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// One spec of the suite and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    /// The texts of its containers and its own, without the suite's own prefix.
    pub(super) name: String,
    pub(super) end: End,
}

/// The result of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Passed,
    /// With the suite's error text.
    Failed(String),
    /// By the spec itself, with its reason.
    Skipped(String),
    /// It was not chosen: another focus, or a benchmark.
    Unchosen,
}

/// Reads the suite's JSON report.
pub(super) fn read(text: &str) -> Result<Vec<Spec>> {
    let report: Value = serde_json::from_str(text).context("the suite's report")?;
    let reports = report[0]["SpecReports"].as_array();
    let reports = reports.context("the suite's report names no specs")?;
    let mut specs = Vec::new();
    for report in reports {
        let end = end(report);
        match report["LeafNodeType"].as_str().unwrap_or_default() {
            "It" => specs.push(Spec { name: name(report), end }),
            node => ensure!(end == End::Passed, "{node}: {end:?}"),
        }
    }
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(specs)
}

fn name(report: &Value) -> String {
    let containers = report["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let texts = containers.chain([&report["LeafNodeText"]]).filter_map(Value::as_str);
    let name = texts.collect::<Vec<_>>().join(" ");
    name.trim_start_matches("[k8s.io] ").to_owned()
}

fn end(report: &Value) -> End {
    let message = report["Failure"]["Message"].as_str().unwrap_or_default();
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match report["State"].as_str().unwrap_or_default() {
        "passed" => End::Passed,
        "skipped" if message.is_empty() => End::Unchosen,
        "skipped" => End::Skipped(message),
        state => End::Failed(format!("{state}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(specs: &[Value]) -> String {
        json!([{ "SpecReports": specs }]).to_string()
    }

    #[test]
    fn tells_what_was_skipped_from_what_was_not_chosen() {
        let spec = |leaf: &str, state: &str, message: &str| {
            json!({
                "ContainerHierarchyTexts": ["[k8s.io] Container", "OOM"], "LeafNodeType": "It",
                "LeafNodeText": leaf, "State": state, "Failure": { "Message": message },
            })
        };
        let mut bare = spec("d", "skipped", "");
        bare["Failure"] = Value::Null;
        let text = report(&[
            spec("a", "passed", ""),
            spec("b", "failed", "Expected\n    <int>: 1"),
            spec("c", "skipped", "not here"),
            bare,
            spec("e", "timedout", "long"),
        ]);
        let ends: Vec<End> = read(&text).unwrap().into_iter().map(|spec| spec.end).collect();
        let failed = |text: &str| End::Failed(text.to_owned());
        let skipped = End::Skipped("not here".to_owned());
        assert_eq!(
            ends,
            [
                End::Passed,
                failed("failed: Expected <int>: 1"),
                skipped,
                End::Unchosen,
                failed("timedout: long"),
            ]
        );
        assert_eq!(read(&text).unwrap()[0].name, "Container OOM a");
    }

    #[test]
    fn a_suite_that_did_not_begin_is_an_error() {
        let text = report(&[json!({
            "LeafNodeType": "BeforeSuite", "State": "failed", "Failure": { "Message": "no socket" },
        })]);
        assert!(read(&text).unwrap_err().to_string().contains("no socket"));
    }
}
