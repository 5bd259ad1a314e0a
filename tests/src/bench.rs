//! How fast and how small Pods are: every handler measured in one run and in turn, so that other
//! load on the machine affects all of them alike. Numbers are printed, none is asserted.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bed::containerd::Node;
use crate::bed::gomod;
use crate::bed::handler::Handler;
use crate::bed::place::Place;
use crate::bed::process::{Run, hold_if_stopping};
use crate::bed::sweep::sweep;
use crate::bed::version::Version;
use crate::client::stage::Stage;
use crate::runner::{Supplies, Wants};

mod bare;
mod boot;
mod life;
mod memory;
pub(crate) mod pull;
mod report;
mod stats;
mod stdio;

use report::Memories;
use stats::Samples;

/// How often throughput is measured, at most: it takes long and varies little.
const FLOODS: u32 = 5;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// On this containerd.
    pub(crate) version: Version,
    /// These handlers, in this order.
    pub(crate) handlers: Vec<Handler>,
    /// How many Pods each runs.
    pub(crate) rounds: u32,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The machine, the programs and the load; a line each.
    pub(crate) facts: Vec<String>,
    /// Why a handler was not measured.
    pub(crate) skipped: Vec<String>,
    /// Errors; a handler is not measured further after its first error in a part.
    pub(crate) failed: Vec<String>,
    handlers: Vec<&'static str>,
    calls: Samples,
    boots: Samples,
    bare: Samples,
    memory: Memories,
    stdio: Samples,
}

impl Report {
    /// All of it, for a reader.
    pub(crate) fn markdown(&self) -> String {
        let mut parts =
            vec![self.facts.iter().map(|f| format!("- {f}")).collect::<Vec<_>>().join("\n")];
        parts.push("CRI calls and bare runsc: median (min–p90) in ms.".to_owned());
        parts.push(report::table("CRI call", &self.calls, &self.handlers, true));
        let runscs: Vec<_> = self.handlers.iter().copied().filter(|h| is_bare(h)).collect();
        parts.push(report::table("bare, the runsc of", &self.bare, &runscs, false));
        let vms: Vec<_> = self.handlers.iter().copied().filter(|h| is_vm(h)).collect();
        if !vms.is_empty() {
            parts.push("The phases of RunPodSandbox with a VM, in ms.".to_owned());
            parts.push(report::table("boot", &self.boots, &vms, false));
        }
        parts.push("An idle Pod of one container.".to_owned());
        parts.push(report::memory_table(&self.memory));
        parts.push("Output of a container through `ctr run`.".to_owned());
        parts.push(report::table("MB/s", &self.stdio, &self.handlers, false));
        parts.extend(self.skipped.iter().map(|line| format!("Skipped: {line}")));
        parts.extend(self.failed.iter().map(|line| format!("FAILED: {line}")));
        parts.join("\n\n")
    }

    /// All of it, for a program.
    pub(crate) fn json(&self) -> Value {
        json!({
            "facts": self.facts, "skipped": self.skipped, "failed": self.failed,
            "cri_ms": report::json(&self.calls, &self.handlers),
            "boot_ms": report::json(&self.boots, &self.handlers),
            "bare_ms": report::json(&self.bare, &self.handlers),
            "idle_pod_kib": report::memory_json(&self.memory),
            "stdio_mb_per_s": report::json(&self.stdio, &self.handlers),
        })
    }

    /// Calls `measure` for each of `stages` in each round, starting each round one stage later.
    fn rounds(
        &mut self,
        what: &str,
        rounds: u32,
        stages: &[Stage],
        measure: impl Fn(&mut Self, &Stage) -> Result<()>,
    ) {
        let mut broken: Vec<&'static str> = Vec::new();
        for round in 0..rounds as usize {
            eprintln!("{what}: round {} of {rounds}", round + 1);
            for turn in 0..stages.len() {
                let stage = &stages[(round + turn) % stages.len()];
                let name = stage.handler.name();
                hold_if_stopping();
                if broken.contains(&name) {
                    continue;
                }
                if let Err(e) = measure(self, stage) {
                    broken.push(name);
                    let line = format!("{name}, {what}, round {}: {e:#}", round + 1);
                    eprintln!("{line}");
                    self.failed.push(line);
                }
            }
        }
    }

    fn measure(&mut self, rounds: u32, stages: &[Stage]) {
        self.rounds("CRI calls and bare runsc", rounds, stages, |report, stage| {
            life::measure(stage, &mut report.calls, &mut report.boots)?;
            if is_bare(stage.handler.name()) {
                bare::measure(stage, &mut report.bare)?;
            }
            Ok(())
        });
        self.rounds("memory", 1, stages, |report, stage| {
            report.memory.push((stage.handler.name(), memory::measure(stage)?));
            Ok(())
        });
        self.rounds("throughput", rounds.min(FLOODS), stages, |report, stage| {
            report.stdio.add("stdout", stage.handler.name(), stdio::measure(stage)?);
            Ok(())
        });
    }
}

fn is_vm(name: &str) -> bool {
    Handler::named(name).is_some_and(Handler::is_vm)
}

/// Each runsc is measured once, under the name of Bulkhead's handler on it.
fn is_bare(name: &str) -> bool {
    Handler::named(name).is_some_and(|handler| handler.is_bulkhead() && !handler.is_vm())
}

/// Brings up one containerd at `place`, measures, and removes the bed.
pub(crate) fn run(plan: &Plan, place: &Place) -> Result<Report> {
    let supplies = Supplies::gather(Wants::of(&plan.handlers))?;
    let mut report = Report::default();
    let mut handlers = Vec::new();
    for handler in &plan.handlers {
        match supplies.lacks(*handler) {
            Some(reason) => report.skipped.push(format!("{}: {reason}", handler.name())),
            None => handlers.push(*handler),
        }
    }
    let end = supplies.up(place, plan.version).and_then(|node| {
        let node = Arc::new(node);
        let measured = measure(&mut report, plan, &node, &handlers);
        let stopped = node.stop(Signal::SIGTERM);
        measured.and(stopped).map(|()| node)
    });
    let left = sweep(place);
    ensure!(left.is_empty(), "could not be removed:\n  {}", left.join("\n  "));
    for socket in end?.shim_sockets() {
        // A peer's shim may leak.
        let _ = fs::remove_file(socket);
    }
    Ok(report)
}

fn measure(report: &mut Report, plan: &Plan, node: &Arc<Node>, handlers: &[Handler]) -> Result<()> {
    let stages = handlers.iter().map(|handler| Stage::new(Arc::clone(node), *handler, "bench"));
    let stages = stages.collect::<Result<Vec<_>>>()?;
    report.handlers = handlers.iter().map(|handler| handler.name()).collect();
    report.facts = facts(plan, node, handlers)?;
    let before = load()?;
    report.measure(plan.rounds, &stages);
    report.facts.push(format!("load average: {before} before, {} after", load()?));
    Ok(())
}

fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn facts(plan: &Plan, node: &Node, handlers: &[Handler]) -> Result<Vec<String>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    let mut facts = vec![
        format!("{} rounds on containerd {}", plan.rounds, plan.version.label()),
        format!("{cpus} CPUs, Linux {}", release.trim()),
    ];
    for handler in handlers {
        let runtime = node.runtime(*handler).context("no runtime")?;
        let version = if handler.needs_newest() {
            // A program that Go builds from a module does not know its version.
            format!("runsc of gvisor.dev/gvisor {}", gomod::pinned("gvisor.dev/gvisor")?)
        } else {
            let words = Run::new(runtime).arg("--version").ok()?;
            words.lines().next().unwrap_or_default().to_owned()
        };
        facts.push(format!("{}: {version}, {}", handler.name(), handler.runtime_type()));
        if *handler == Handler::GvisorGo && !gomod::may_lower_oom_score() {
            facts.push("gvisor-go's shim is built to keep its OOM score, as it has to here".into());
        }
    }
    Ok(facts)
}
