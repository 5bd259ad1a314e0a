//! `bulkhead pull`: an image with its credential, and why it does not come.

pub(crate) mod args;
mod bars;
mod error;
mod ingest;
mod lines;
mod output;
mod plan;
mod runtime;
pub(crate) mod sources;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use sandbox_image::{Client, HostsDirectories, Platform, Reference, Retry, Sources};

use crate::cri::Cri;
use crate::interrupt::Signals;
use args::PullArgs;
pub(crate) use bars::Bars;
pub(crate) use error::PullError;
pub(crate) use runtime::{Wanted, into_runtime};

/// The exit code of a pull that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Pulls; the exit code comes back.
pub(crate) async fn run(endpoint: &str, args: &PullArgs) -> Result<u8, PullError> {
    keep_out_of_core_dumps();
    if args.verbose {
        lines::on();
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
    let bars = Arc::new(Bars::new(std::io::stderr().is_terminal()));
    let id = match &args.output {
        Some(output) => output::pull_to(&client(), reference, platform, output, &bars).await?,
        None => {
            let cri = Cri::connect(endpoint).await?;
            let handler = args.handler.as_deref().unwrap_or_default();
            let wanted = Wanted { image: &args.image, reference, handler, sandbox: None };
            into_runtime(&cri, wanted, &sources, &bars).await?
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
