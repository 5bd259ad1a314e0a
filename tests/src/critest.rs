//! critest, the conformance suite of CRI, on a handler: its images are made here, it pulls from a
//! registry in this process, and its failures are compared with the lists of known ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::bed::containerd::Node;
use crate::bed::gomod;
use crate::bed::handler::{AS_RUNC, Handler};
use crate::bed::place::{self, Place};
use crate::bed::process::{Run, kill_group, wait};
use crate::bed::sweep::sweep;
use crate::bed::traces::Traces;
use crate::bed::version::Version;
use crate::runner::{Counts, Supplies, Wants};

mod images;
mod list;
mod program;
mod registry;
mod report;
mod suite;

use images::{Images, Parts};
use list::List;
use program::Program;
use report::Sums;
use suite::{End, Spec};

/// How long the whole suite may take, with emulated VMs.
const DEADLINE: Duration = Duration::from_secs(3 * 3600);

/// Which specs to run on what.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// On this containerd.
    pub(crate) version: Version,
    /// Under this handler.
    pub(crate) handler: Handler,
    /// Only specs that one of these regular expressions matches; all if empty.
    pub(crate) focus: Vec<String>,
    /// No spec that one of these matches.
    pub(crate) skip: Vec<String>,
    /// NRI's specs, and no others.
    pub(crate) nri: bool,
    /// Where the suite's log, the JUnit file and the tables go.
    pub(crate) out: PathBuf,
}

impl Plan {
    /// Whether nothing is left out.
    fn is_whole(&self) -> bool {
        self.focus.is_empty() && self.skip.is_empty()
    }

    /// The handler's name as containerd knows it, where it offers all that the handler can do.
    fn registered(&self) -> String {
        let as_runc = self.handler.is_bulkhead() && self.version == Version::V21;
        format!("{}{}", self.handler.name(), if as_runc { AS_RUNC } else { "" })
    }

    /// The stem of the run's file names.
    fn stem(&self) -> String {
        let nri = if self.nri { "-nri" } else { "" };
        format!("{}-{}{nri}", self.version.label(), self.handler.name())
    }

    fn file(&self, end: &str) -> PathBuf {
        self.out.join(format!("{}{end}", self.stem()))
    }
}

/// The programs and images of a run.
struct Provided {
    supplies: Supplies,
    program: Program,
    images: Images,
}

/// Fills the cache with what `plan` needs, or returns what this machine lacks.
fn provide(plan: &Plan) -> Result<Result<Provided, String>> {
    let cache = place::cache();
    let supplies = Supplies::gather(Wants::of(&[plan.handler]))?;
    if let Some(reason) = supplies.lacks(plan.handler) {
        return Ok(Err(reason));
    }
    let _filling = place::fills(&cache)?;
    let program = match Program::find(&cache)? {
        Ok(program) => program,
        Err(lack) => return Ok(Err(lack)),
    };
    let parts = Parts::gather(supplies.packages(), &cache, &cache.join("critest"))?;
    let images = parts.images()?;
    let archive = cache.join("critest/images.tar");
    fs::write(&archive, &images.imported)?;
    Ok(Ok(Provided { supplies: supplies.with_images(archive), program, images }))
}

/// Runs `plan` at `place` and prints the result of each spec. A result that differs from the list
/// counts as failed, a spec that is known to fail as skipped.
pub(crate) fn run(plan: &Plan, place: &Place) -> Result<Counts> {
    let list = List::of(plan.handler, plan.version, plan.nri)?;
    let Provided { supplies, program, images } = match provide(plan)? {
        Ok(provided) => provided,
        Err(lack) => {
            println!("{}/critest ... skipped: {lack}", plan.stem());
            return Ok(Counts { skipped: 1, ..Counts::default() });
        }
    };
    fs::create_dir_all(&plan.out)?;
    let node = supplies.up(place, plan.version)?;
    let begun = Instant::now();
    let specs = run_suite(plan, &node, &program, &images);
    let took = begun.elapsed();
    let stopped = node.stop(Signal::SIGTERM);
    let runtime = runtime_version(&node, plan.handler);
    let left = sweep(place);
    let specs = specs?;
    stopped?;
    let sums = Sums {
        handler: plan.handler.name().to_owned(),
        line: plan.version.label().to_owned(),
        containerd: supplies.packages().version(&format!("containerd-{}", plan.version.label())),
        runtime,
        critest: program.version,
        date: Run::new("date").args(["-u", "+%F"]).ok()?.trim().to_owned(),
        seconds: took.as_secs(),
        passed: 0,
        failed: 0,
        skipped: 0,
        nri: plan.nri,
    };
    let sums = sums.count(&specs);
    write_tables(plan, &sums, &specs, &list)?;
    let mut counts = judge(plan, &specs, &list);
    for line in left {
        counts.failed += 1;
        println!("could not be removed: {line}");
    }
    println!(
        "critest {} on {}: {} passed, {} failed and {} skipped by the suite's own count, in {} s",
        plan.handler.name(),
        sums.containerd,
        sums.passed,
        sums.failed,
        sums.skipped,
        sums.seconds
    );
    Ok(counts)
}

/// Writes the table of all runs whose sums are in `out` into the file `readme`.
pub(crate) fn write_readme(out: &Path, readme: &Path) -> Result<()> {
    let text = fs::read_to_string(readme).with_context(|| readme.display().to_string())?;
    let text = report::into_readme(&text, &report::summary(&report::gather(out)?))?;
    fs::write(readme, text).with_context(|| readme.display().to_string())
}

fn run_suite(plan: &Plan, node: &Node, program: &Program, images: &Images) -> Result<Vec<Spec>> {
    let registry = registry::serve(&images.all)?;
    let hosts = node.hosts().join("_default");
    fs::create_dir_all(&hosts)?;
    let host = format!("server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n");
    fs::write(hosts.join("hosts.toml"), format!("{host}capabilities = [\"pull\", \"resolve\"]\n"))?;
    let own = node.run().join("critest");
    program.with_digest(&images.by_digest, &own)?;
    let temporary = node.lib().join("tmp");
    fs::create_dir_all(&temporary)?;
    let config = node.run().join("crictl.yaml");
    fs::write(&config, "")?;

    let before = Traces::of(node);
    let segments = segments();
    let json = plan.file(".json");
    let _ = fs::remove_file(&json);
    let log = plan.file(".log");
    let _ = fs::remove_file(&log);
    eprintln!("critest {} runs; its log: {}", program.version, log.display());
    let run = arguments(plan, node, Run::new(&own).arg("-config").arg(&config).dir(&temporary));
    let mut child = run.env("TMPDIR", &temporary).daemon(&log)?;
    if wait(&mut child, DEADLINE)?.is_none() {
        kill_group(&mut child);
        bail!("critest: killed after {DEADLINE:?}; its log: {}", log.display());
    }
    remove_segments(&segments);
    if let Err(left) = Traces::compare(node, &before) {
        println!("{}/critest: {left}", plan.stem());
    }
    let text = fs::read_to_string(&json);
    let text = text.with_context(|| format!("critest wrote no report: see {}", log.display()))?;
    suite::read(&text)
}

fn arguments(plan: &Plan, node: &Node, run: Run) -> Run {
    let endpoint = format!("unix://{}", node.socket().display());
    let mut run = run.args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint]);
    run = run.args(["-runtime-handler", &plan.registered(), "-ginkgo.no-color", "-ginkgo.v"]);
    run = run.args(["-ginkgo.seed=1", "-ginkgo.timeout=3h"]);
    run = run.arg(format!("-ginkgo.json-report={}", plan.file(".json").display()));
    run = run.arg(format!("-ginkgo.junit-report={}", plan.file(".junit.xml").display()));
    if plan.nri {
        run = run.arg(format!("-nri-socket={}", node.nri_socket().display()));
        run = run.arg("-ginkgo.focus=NRI");
    }
    for focus in &plan.focus {
        run = run.arg(format!("-ginkgo.focus={focus}"));
    }
    for skip in &plan.skip {
        run = run.arg(format!("-ginkgo.skip={skip}"));
    }
    run
}

/// Shared memory segments of the machine, by id, that no process has attached.
fn segments() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let fields = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let idle = fields.filter(|f| f.get(3) == Some(&"1048576") && f.get(6) == Some(&"0"));
    idle.filter_map(|f| Some((*f.get(1)?).to_owned())).collect()
}

/// Removes the segments that the suite made on the machine and left there.
fn remove_segments(before: &BTreeSet<String>) {
    for id in segments().difference(before) {
        if let Err(e) = Run::new("ipcrm").args(["-m", id]).ok() {
            eprintln!("{e:#}");
        }
    }
}

fn runtime_version(node: &Node, handler: Handler) -> String {
    if handler.needs_newest() {
        // A program that Go builds from a module does not know its version.
        return gomod::pinned("gvisor.dev/gvisor")
            .map_or_else(|e| e.to_string(), |v| format!("runsc {v}"));
    }
    let Some(program) = node.runtime(handler) else { return String::new() };
    let text = Run::new(program).arg("--version").ok().unwrap_or_default();
    // Without the distribution's addition in brackets.
    let line = text.lines().next().unwrap_or_default();
    line.split(" (").next().unwrap_or_default().replace("version ", "")
}

fn write_tables(plan: &Plan, sums: &Sums, specs: &[Spec], list: &List) -> Result<()> {
    fs::write(plan.file(".md"), report::details(sums, specs, list))?;
    // A filtered run is no result of the handler.
    if plan.is_whole() {
        let text = serde_json::to_string_pretty(sums)?;
        fs::write(plan.file(report::SUMS), text)?;
        fs::write(plan.out.join("summary.md"), report::summary(&report::gather(&plan.out)?))?;
    }
    Ok(())
}

/// Prints the result of each spec and counts.
fn judge(plan: &Plan, specs: &[Spec], list: &List) -> Counts {
    let mut counts = Counts::default();
    let is_judged = plan.handler != Handler::GvisorGo;
    for spec in specs {
        let name = format!("{}/critest: {}", plan.stem(), spec.name);
        let cause = list.cause(&spec.name).map_or("", |cause| cause.text.as_str());
        let verdict = list.verdict(spec).filter(|_| is_judged);
        match (&spec.end, verdict) {
            (_, Some(verdict)) => {
                counts.failed += 1;
                println!("{name} ... FAILED: {verdict}");
            }
            (End::Passed, None) => {
                counts.passed += 1;
                println!("{name} ... ok");
            }
            (End::Failed(text), None) => {
                counts.skipped += 1;
                let cause = if is_judged { cause } else { text };
                println!("{name} ... skipped: known to fail: {cause}");
            }
            (End::Skipped(text), None) => {
                counts.skipped += 1;
                println!("{name} ... skipped: {text}");
            }
            (End::Unchosen, None) => {
                counts.skipped += 1;
                println!("{name} ... skipped: {}", unchosen(&spec.name));
            }
        }
    }
    for name in list.unheard_of(specs) {
        counts.failed += 1;
        println!(
            "{}/critest: {name} ... FAILED: on the list, and no spec of the suite",
            plan.stem()
        );
    }
    counts
}

fn unchosen(name: &str) -> &'static str {
    match name.contains("benchmark") {
        true => "a benchmark",
        false => "not chosen for this run",
    }
}
