//! The Pod's network as the host sees it: its namespace and the host's veth.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pod::Pod;
use super::stage::Stage;
use crate::bed::process::Run;

/// The path of the Pod's network namespace.
pub(crate) fn path(stage: &Stage, pod: &Pod<'_>) -> Result<PathBuf> {
    let info = stage.cri.pod_info(&pod.id)?;
    let info: Value = serde_json::from_str(info.get("info").context("no info of the Pod")?)?;
    let spaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
    let network = spaces.into_iter().flatten().find(|space| space["type"] == "network");
    let path = network.and_then(|space| space["path"].as_str());
    Ok(path.context("the Pod's network namespace has no path")?.into())
}

/// A program that runs in that namespace.
pub(crate) fn run(netns: &std::path::Path, words: &[&str]) -> Run {
    Run::new("nsenter").arg(format!("--net={}", netns.display())).arg("--").args(words)
}

/// The host's peer of the Pod's eth0.
pub(crate) fn host_end(netns: &std::path::Path) -> Result<String> {
    let inside = run(netns, &["ip", "-o", "link", "show", "eth0"]).ok()?;
    let index = inside.split("@if").nth(1).and_then(|rest| rest.split(':').next());
    let index = index.with_context(|| format!("eth0 has no peer: {inside}"))?;
    let links = Run::new("ip").args(["-o", "link", "show"]).ok()?;
    let ours = links.lines().find_map(|line| line.strip_prefix(&format!("{index}: ")));
    let name = ours.and_then(|rest| rest.split(['@', ':']).next());
    Ok(name.with_context(|| format!("no link {index}: {links}"))?.to_owned())
}

/// Rules on the host's veth of one Pod, as a network policy's agent makes them; removed when dropped.
#[derive(Debug)]
pub(crate) struct Policy {
    table: String,
    link: String,
}

/// Which packets a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the Pod.
    In,
    /// From the Pod.
    Out,
}

impl Policy {
    /// An empty policy on `link`.
    pub(crate) fn new(stage: &Stage, link: &str) -> Result<Self> {
        let table = stage.node.place().table(link);
        let policy = Self { table, link: link.to_owned() };
        policy.nft(&format!("add table netdev {}\n", policy.table))?;
        Ok(policy)
    }

    /// Replaces the rules of one direction; each is a rule in nft's syntax.
    pub(crate) fn set(&self, way: Way, rules: &[&str]) -> Result<()> {
        let (chain, hook) = match way {
            Way::In => ("to_pod", "egress"),
            Way::Out => ("from_pod", "ingress"),
        };
        let table = &self.table;
        let link = &self.link;
        let mut script = format!(
            "add chain netdev {table} {chain} {{ type filter hook {hook} device \"{link}\" \
             priority 0; policy accept; }}\nflush chain netdev {table} {chain}\n"
        );
        for rule in rules {
            script.push_str(&format!("add rule netdev {table} {chain} {rule}\n"));
        }
        self.nft(&script)
    }

    fn nft(&self, script: &str) -> Result<()> {
        let done = Run::new("nft").args(["-f", "-"]).stdin(script).finish()?;
        ensure!(done.status.success(), "nft: {}\n{script}", done.err());
        Ok(())
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Err(e) = self.nft(&format!("delete table netdev {}\n", self.table)) {
            eprintln!("    clean-up of {}: {e:#}", self.table);
        }
    }
}
