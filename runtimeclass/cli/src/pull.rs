//! `bulkhead pull`: pulls an image with its credential, or shows why that fails.

pub(crate) mod args;
mod error;
mod lines;
mod output;
mod plan;
pub(crate) mod sources;

use std::io::IsTerminal as _;
use std::time::Duration;

use pod_runner::ImageRequest;
use sandbox_image::{Client, HostsDirectories, Platform, Reference, Retry, Sources};

use crate::bars::Bars;
use crate::console;
use crate::signals::Signals;
use args::PullArgs;
pub(crate) use error::PullError;

/// The exit code of a pull that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Pulls; returns the exit code.
pub(crate) async fn run(endpoint: &str, args: &PullArgs) -> Result<u8, PullError> {
    keep_out_of_core_dumps();
    if args.verbose {
        lines::print_steps();
    }
    let reference: Reference = args.image.parse()?;
    let platform = match &args.platform {
        Some(text) => text.parse()?,
        None => Platform::of_this_machine(),
    };
    let sources = sources::read(&args.sources, &reference)?;
    let mut signals = Signals::catch().map_err(PullError::Signals)?;
    let work = work(endpoint, args, &reference, platform, sources);
    tokio::select! {
        result = work => result,
        caught = signals.next() => {
            eprintln!("bulkhead: {} caught; nothing of the pull is kept", caught.name);
            Ok(caught.exit_code)
        }
        () = tokio::time::sleep(Duration::from_secs(args.timeout.into())) => {
            eprintln!("bulkhead: not done after {} s (--timeout)", args.timeout);
            Ok(TIMED_OUT)
        }
    }
}

async fn work(
    endpoint: &str,
    args: &PullArgs,
    reference: &Reference,
    platform: Platform,
    sources: Sources,
) -> Result<u8, PullError> {
    let client = || {
        let directories = HostsDirectories::new(args.certs_dir.clone());
        Client::new(directories, sources.clone(), Retry::default())
    };
    if args.dry_run {
        plan::print(&client(), reference).await?;
        return Ok(0);
    }
    if args.check {
        return plan::check(&client(), reference, &platform).await;
    }
    let id = match &args.output {
        Some(output) => {
            let bars = Bars::new(std::io::stderr().is_terminal());
            output::pull_to(&client(), reference, platform, output, &bars).await?
        }
        None => {
            let cri = console::connect(endpoint).await?;
            let handler = args.handler.as_deref().unwrap_or_default();
            let request = ImageRequest { image: &args.image, reference, handler, sandbox: None };
            pod_runner::pull(&cri, request, &sources).await?
        }
    };
    println!("{id}");
    Ok(0)
}

/// A core dump, or a debugger of the same user, would find passwords in this process's memory.
pub(crate) fn keep_out_of_core_dumps() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        eprintln!("bulkhead: note: cannot keep this process out of core dumps: {error}");
    }
}
