//! `containerd-shim-bulkhead-v2`: containerd starts it for a Pod, and it runs the Pod's containers
//! in the sandbox that the Pod's RuntimeClass handler names.
//!
//! One process per Pod serves containerd's task service over ttrpc; `start` and `delete` are short
//! calls of the same binary (containerd's `core/runtime/v2/README.md`).

#![forbid(unsafe_code)]

mod args;
mod delete;
mod events;
mod logging;
mod pod;
mod role;
mod runtime;
mod serve;
mod start;
mod state;
mod task;
mod tasks;
mod wire;

use std::process::ExitCode;

use args::{Action, Args};

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args()) {
        Ok(args) => args,
        Err(error) => return failed(&error),
    };
    let result = match args.action {
        Action::Version => {
            println!("{}:", env!("CARGO_BIN_NAME"));
            println!("  Version:  {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Info => wire::info(&args.program),
        Action::Start => start::run(&args),
        Action::Delete => delete::run(&args),
        Action::Serve => serve::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// containerd reports standard error as the reason why the Pod failed.
fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{}: {error}", env!("CARGO_BIN_NAME"));
    ExitCode::FAILURE
}
