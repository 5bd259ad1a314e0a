//! Plays the chosen cases, one after the other, each under a deadline and followed by a search for
//! leaks.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;

use crate::bed::containerd::Node;
use crate::bed::gomod::{self, GoTools};
use crate::bed::handler::{self, Handler};
use crate::bed::image;
use crate::bed::packages::Packages;
use crate::bed::place::{self, Place};
use crate::bed::process::{hold_if_stopping, patience};
use crate::bed::sweep::sweep;
use crate::bed::traces::Traces;
use crate::bed::version::Version;
use crate::bed::vm::{self, VmTools};
use crate::cases::Case;
use crate::client::stage::{Skip, Stage};
use crate::plan::{Plan, full_name};

/// The number of cases by result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Passed.
    pub(crate) passed: u32,
    /// Failed.
    pub(crate) failed: u32,
    /// Not played, with a reason printed.
    pub(crate) skipped: u32,
}

/// What every containerd of a run shares.
#[derive(Debug)]
pub(crate) struct Supplies {
    packages: Packages,
    newest: Result<GoTools, String>,
    vm: Result<VmTools, String>,
    images: PathBuf,
}

/// What takes long to build and not every run needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// The programs of the newest gVisor.
    pub(crate) newest: bool,
    /// The programs and image of VMs.
    pub(crate) vm: bool,
}

impl Wants {
    /// What these handlers need.
    pub(crate) fn of(handlers: &[Handler]) -> Self {
        Self {
            newest: handlers.iter().any(|handler| handler.needs_newest()),
            vm: handlers.iter().any(|handler| handler.is_vm()),
        }
    }
}

impl Supplies {
    /// Downloads, builds and makes what is not in the cache. What only some handlers need may be
    /// missing: see [`Self::lacks`].
    pub(crate) fn gather(wants: Wants) -> Result<Self> {
        let cache = place::cache();
        let _filling = place::fills(&cache)?;
        let packages = Packages::fetch(&cache)?;
        let images = image::archive(&cache, &packages.busybox())?;
        let unasked = || "not asked for".to_owned();
        let newest = match wants.newest {
            true => gomod::build(&cache).map_err(|e| format!("{e:#}")),
            false => Err(unasked()),
        };
        let vm = match wants.vm {
            true => vm::gather(&cache)?,
            false => Err(unasked()),
        };
        Ok(Self { packages, newest, vm, images })
    }

    /// The unpacked packages.
    pub(crate) fn packages(&self) -> &Packages {
        &self.packages
    }

    /// The same with the images of this archive.
    pub(crate) fn with_images(self, images: PathBuf) -> Self {
        Self { images, ..self }
    }

    /// Brings up a containerd at `place`.
    pub(crate) fn up(&self, place: &Place, version: Version) -> Result<Node> {
        let newest = self.newest.as_ref().ok();
        let vm = self.vm.as_ref().ok();
        Node::up(place, version, &self.packages, newest, vm, &self.images)
    }

    /// Why `handler` cannot be played here, if it cannot.
    pub(crate) fn lacks(&self, handler: Handler) -> Option<String> {
        if handler.is_bulkhead() && handler::shim().is_none() {
            return Some("containerd-shim-bulkhead-v2 has not been built".to_owned());
        }
        let lack = |what: &str, reason: &String| Some(format!("{what}: {reason}"));
        match handler {
            Handler::Runc | Handler::Gvisor => None,
            Handler::GvisorNew | Handler::GvisorGo => {
                self.newest.as_ref().err().and_then(|reason| lack("no newest runsc", reason))
            }
            Handler::KataContainers => {
                self.vm.as_ref().err().and_then(|reason| lack("no VMs", reason))
            }
        }
    }
}

/// Plays `plan` at `place` and prints each result.
pub(crate) fn play(plan: &Plan, place: &Place) -> Result<Counts> {
    let supplies = Supplies::gather(Wants::of(&plan.handlers()))?;
    let mut counts = Counts::default();
    for (version, cases) in plan.stages() {
        play_version(place, &supplies, version, &cases, &mut counts);
    }
    Ok(counts)
}

fn play_version(
    place: &Place,
    supplies: &Supplies,
    version: Version,
    cases: &[(Handler, Case)],
    counts: &mut Counts,
) {
    let mut node: Option<Arc<Node>> = None;
    let mut broken: Option<String> = None;
    for (handler, case) in cases {
        hold_if_stopping();
        let name = full_name(version, *handler, case);
        let begun = Instant::now();
        let end = match (supplies.lacks(*handler), &broken) {
            (Some(reason), _) => Err(Skip(reason).into()),
            (None, Some(why)) => Err(anyhow!("no containerd: {why}")),
            (None, None) => ready(&mut node, supplies, place, version)
                .inspect_err(|e| broken = Some(format!("{e:#}")))
                .and_then(|ready| play_case(&ready, *handler, *case)),
        };
        let end = match end {
            Err(e) if broken.is_none() && is_flaky_control(*handler, &e) => {
                println!("{name}: the control failed and is played again: {e:#}");
                node = None;
                report_leaks(&sweep(place));
                ready(&mut node, supplies, place, version)
                    .and_then(|ready| play_case(&ready, *handler, *case))
            }
            end => end,
        };
        let lost = end.as_ref().is_err_and(|e| e.is::<Overdue>());
        record(&name, begun.elapsed(), end, counts);
        if lost {
            node = None;
            report_leaks(&sweep(place));
        }
    }
    if let Some(node) = node {
        stop_node(&node, counts);
    }
}

/// Whether runc's own shim failed. It shows that a case can pass, but is not without faults: that of
/// containerd 2.1 now and then loses an exit, upon which StopPodSandbox never returns. A wrong case
/// fails again.
fn is_flaky_control(handler: Handler, error: &anyhow::Error) -> bool {
    handler == Handler::Runc && !error.is::<Skip>()
}

/// The running containerd, started when there is none.
fn ready(
    node: &mut Option<Arc<Node>>,
    supplies: &Supplies,
    place: &Place,
    version: Version,
) -> Result<Arc<Node>> {
    if let Some(node) = node {
        return Ok(Arc::clone(node));
    }
    let fresh = supplies.up(place, version).inspect_err(|_| report_leaks(&sweep(place)))?;
    Ok(Arc::clone(node.insert(Arc::new(fresh))))
}

/// A case exceeded its deadline; the state of its containerd is unknown.
#[derive(Debug)]
struct Overdue(Duration);

impl std::fmt::Display for Overdue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "still ran after {:?}", self.0)
    }
}

impl std::error::Error for Overdue {}

fn play_case(node: &Arc<Node>, handler: Handler, case: Case) -> Result<()> {
    let before = Traces::of(node);
    let log = node.log_len();
    let (sender, receiver) = channel();
    let on = Arc::clone(node);
    std::thread::spawn(move || {
        let play = AssertUnwindSafe(|| (case.play)(&Stage::new(on, handler, case.name)?));
        let end = std::panic::catch_unwind(play).unwrap_or_else(|_| Err(anyhow!("panicked")));
        let _ = sender.send(end);
    });
    // Its processor may be emulated.
    let deadline = patience(case.deadline * if handler.is_vm() { 3 } else { 1 });
    let end = match receiver.recv_timeout(deadline) {
        Ok(end) => end,
        Err(_) => Err(Overdue(deadline).into()),
    };
    let end = match end {
        Err(e) if e.is::<Overdue>() => Err(e),
        Err(e) if e.is::<Skip>() => return Err(e),
        // A peer's shim is not checked for leaks.
        end if handler == Handler::GvisorGo => end,
        Ok(()) => Traces::compare(node, &before),
        Err(e) => match Traces::compare(node, &before) {
            Ok(()) => Err(e),
            Err(left) => Err(e.context(format!("(and {left})"))),
        },
    };
    end.map_err(|e| match e.downcast::<Overdue>() {
        Ok(overdue) => {
            eprintln!("{}", excerpt(node, log));
            overdue.into()
        }
        Err(e) => anyhow!("{e:#}\n{}", excerpt(node, log)),
    })
}

fn excerpt(node: &Node, log: u64) -> String {
    let text = node.log_tail(log);
    let lines: Vec<String> = text.lines().map(|line| format!("    | {line}")).collect();
    format!("  containerd's log:\n{}", lines.join("\n"))
}

fn record(name: &str, took: Duration, end: Result<()>, counts: &mut Counts) {
    let seconds = took.as_secs_f32();
    match end {
        Ok(()) => {
            counts.passed += 1;
            println!("{name} ... ok ({seconds:.1} s)");
        }
        Err(e) => match e.downcast::<Skip>() {
            Ok(Skip(reason)) => {
                counts.skipped += 1;
                println!("{name} ... skipped: {reason}");
            }
            Err(e) => {
                counts.failed += 1;
                println!("{name} ... FAILED ({seconds:.1} s)\n  {e:#}");
            }
        },
    }
}

/// Stops a containerd; that it exits and leaks nothing is a case of its own.
fn stop_node(node: &Node, counts: &mut Counts) {
    let begun = Instant::now();
    let stopped = node.stop(Signal::SIGTERM);
    let left = sweep(node.place());
    let end = match (stopped, left.is_empty()) {
        (Ok(()), true) => Ok(()),
        (Err(e), _) => Err(e),
        (Ok(()), false) => Err(anyhow!("could not be removed:\n  {}", left.join("\n  "))),
    };
    let name = format!("{}/containerd_stops_without_leaks", node.version.label());
    record(&name, begun.elapsed(), end, counts);
}

fn report_leaks(left: &[String]) {
    for line in left {
        eprintln!("  could not be removed: {line}");
    }
}
