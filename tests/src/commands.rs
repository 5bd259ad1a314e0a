//! The commands of `bulkhead-testbed`.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use crate::bed::handler::Handler;
use crate::bed::place::{Place, cache};
use crate::bed::version::Version;
use crate::bed::{nested, process, sweep, vm};
use crate::bench;
use crate::critest;
use crate::plan::Plan;
use crate::relay;
use crate::runner::{self, Counts, Supplies, Wants};
use anyhow::{Context, Result, anyhow};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Bench, BenchPull, Cli, Command, Critest, E2e, Nested};

/// Reads the command line and does what it asks for; errors go to the standard error.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("bulkhead-testbed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let place = match &cli.bed {
        Some(id) => Place::named(id)?,
        None => Place::fresh(),
    };
    match cli.command {
        Command::Fetch => fetch(),
        Command::E2e(args) => e2e(args, place),
        Command::Bench(args) => measure(args, place),
        Command::BenchPull(args) => {
            let BenchPull { rounds, layers, layer_mib } = args;
            sweep_on_signal(place.clone());
            let report =
                bench::pull::run(&bench::pull::Plan { rounds, layers, layer_mib }, &place)?;
            println!("{}", report.markdown());
            Ok(ExitCode::SUCCESS)
        }
        Command::Critest(args) => conform(args, place),
        Command::Nested(args) => nested(args, &place),
        Command::Up { containerd, newest, vm } => {
            let supplies = Supplies::gather(Wants { newest, vm })?;
            let node = supplies.up(&place, containerd)?;
            println!("bed={}", place.id());
            println!("socket={}", node.socket().display());
            println!("config={}", node.run().join("config.toml").display());
            println!("log={}", node.log().display());
            if let (true, Some(reason)) = (vm, supplies.lacks(Handler::KataContainers)) {
                println!("lacks={reason}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Down { all } => down(all, cli.bed.is_some().then_some(place)),
    }
}

/// What only some handlers need may be missing; prints which handlers cannot be played.
fn fetch() -> Result<ExitCode> {
    let supplies = Supplies::gather(Wants { newest: true, vm: true })?;
    for handler in Handler::ALL {
        if let Some(reason) = supplies.lacks(handler) {
            eprintln!("{}: {reason}", handler.name());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn e2e(args: E2e, place: Place) -> Result<ExitCode> {
    let plan = Plan::new(&args.containerd, &args.handler, args.tier, args.filters);
    if args.list {
        println!("{}", plan.names().join("\n"));
        return Ok(ExitCode::SUCCESS);
    }
    sweep_on_signal(place.clone());
    let counts = runner::play(&plan, &place)?;
    Ok(sum(counts, counts.passed > 0))
}

/// Prints the last line; `played`: whether at least one case was played.
fn sum(counts: Counts, played: bool) -> ExitCode {
    let Counts { passed, failed, skipped } = counts;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && played { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn conform(args: Critest, place: Place) -> Result<ExitCode> {
    let out = std::path::absolute(&args.out).context("--out")?;
    if let Some(readme) = args.readme {
        critest::write_readme(&out, &readme)?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = critest::Plan {
        version: args.containerd,
        handler: args.handler,
        focus: args.focus,
        skip: args.skip,
        nri: args.nri,
        out,
    };
    sweep_on_signal(place.clone());
    let counts = critest::run(&plan, &place)?;
    // A handler that cannot run here is skipped with its reason.
    Ok(sum(counts, counts.passed + counts.skipped > 0))
}

/// The factor of deadlines in a nested VM.
const NESTED_PATIENCE: &str = "4";

fn nested(args: Nested, place: &Place) -> Result<ExitCode> {
    let vmm = vm::cloud_hypervisor()?;
    if args.command.is_empty() && vmm.is_none() {
        println!("nested ... skipped: {} names no cloud-hypervisor", vm::CLOUD_HYPERVISOR);
        println!("0 passed, 0 failed, 1 skipped");
        return Ok(ExitCode::SUCCESS);
    }
    // Fills the cache, as the nested VM has no network.
    let wants = Wants { newest: false, vm: args.command.is_empty() };
    let supplies = Supplies::gather(wants)?;
    let mut environment = vec![(process::PATIENCE_FACTOR, NESTED_PATIENCE.into())];
    if let Some(vmm) = vmm {
        environment.push((vm::HYPERVISOR, "cloud-hypervisor".into()));
        environment.push((vm::CLOUD_HYPERVISOR, vmm.into()));
    }
    for name in ["BULKHEAD_AGENT", "BULKHEAD_BIN_DIR", "BULKHEAD_CACHE"] {
        environment.extend(std::env::var_os(name).map(|value| (name, value)));
    }
    let deadline = Duration::from_secs(args.minutes * 60);
    let processors = args.processors;
    let memory_mib = args.memory_mib;
    sweep_on_signal(place.clone());
    let run = |command| {
        let environment = environment.clone();
        let plan = nested::Plan { command, environment, processors, memory_mib, deadline };
        nested::run(place, supplies.packages(), &cache(), &plan)
    };
    let code = match args.command.is_empty() {
        true => nested_cases(args.cases, run),
        false => run(args.command).and_then(|outcome| {
            outcome.code.map(ExitCode::from).context("the VM crashed before its command exited")
        }),
    };
    for line in sweep::sweep(place) {
        eprintln!("could not be removed: {line}");
    }
    code
}

/// The cases that are played where no command is given.
fn nested_cases(
    filters: Vec<String>,
    run: impl Fn(Vec<OsString>) -> Result<nested::Outcome>,
) -> Result<ExitCode> {
    let own = std::env::current_exe().context("this program's own path")?;
    let handler = Handler::KataContainers;
    let version = Version::V21;
    let words = ["e2e", "--handler", handler.name(), "--containerd", version.label()];
    let command: Vec<_> =
        [own.into_os_string()].into_iter().chain(words.map(OsString::from)).collect();
    let names = Plan::new(&[version], &[handler], None, filters).names();
    let counts = relay::play(names, |names| {
        run(command.iter().cloned().chain(names.iter().map(OsString::from)).collect())
    })?;
    Ok(sum(counts, counts.passed > 0))
}

fn measure(args: Bench, place: Place) -> Result<ExitCode> {
    let handlers = if args.handler.is_empty() { Handler::ALL.into() } else { args.handler };
    let plan = bench::Plan { version: args.containerd, handlers, rounds: args.rounds };
    sweep_on_signal(place.clone());
    let report = bench::run(&plan, &place)?;
    println!("{}", report.markdown());
    if let Some(path) = args.json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn down(all: bool, named: Option<Place>) -> Result<ExitCode> {
    let places = match (all, named) {
        (true, None) => sweep::beds(),
        (false, Some(place)) => vec![place],
        _ => return Err(anyhow!("down needs either --bed ID or --all")),
    };
    let left: Vec<String> = places.iter().flat_map(sweep::sweep).collect();
    for line in &left {
        eprintln!("could not be removed: {line}");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On the first SIGINT, SIGTERM or SIGHUP: removes the bed, then exits.
fn sweep_on_signal(place: Place) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            std::io::Result::Ok(())
        })?;
        eprintln!("interrupted: removing the bed {}", place.id());
        process::stop();
        sweep::sweep(&place);
        // A case that was running may have made a folder since.
        std::thread::sleep(Duration::from_millis(300));
        for line in sweep::sweep(&place) {
            eprintln!("could not be removed: {line}");
        }
        std::process::exit(130);
        #[expect(unreachable_code, reason = "the type of the closure")]
        std::io::Result::Ok(())
    });
}
