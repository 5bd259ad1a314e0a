//! `bulkhead`: the node administrator's tool.
//!
//! `bulkhead play` runs the Pods of Kubernetes YAML on this node through CRI, without a cluster; `bulkhead guest` builds
//! the image that VM Pods boot; see README.md.
#![forbid(unsafe_code)]

mod args;
mod bars;
mod console;
mod credential_provider;
mod down;
mod error_chain;
mod exec;
mod find;
mod guest;
mod install;
mod output;
mod play;
mod pull;
#[cfg(test)]
mod readme_tests;
mod show;
mod signals;
mod stream;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use console::connect;
use error_chain::chain;

/// The exit code of a command that failed.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&cli)).map_err(|error| chain(&*error)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(text) => {
            eprintln!("bulkhead: {text}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(cli: &Cli) -> Result<u8, Box<dyn Error>> {
    let endpoint = cli.runtime_endpoint.as_str();
    let state = cli.state_dir.as_path();
    let code = match &cli.command {
        Command::Play(args) => play::play(endpoint, state, args).await?,
        Command::Down(args) => down::down(&connect(endpoint).await?, state, args).await?,
        Command::Exec(args) => {
            let cri = connect(endpoint).await?;
            exec::run(&cri, &args.container, &args.run, &args.command, args.timeout).await?
        }
        Command::Attach(args) => {
            exec::attach(&connect(endpoint).await?, &args.container, args.stdin).await?
        }
        Command::Logs(args) => {
            show::logs(&connect(endpoint).await?, &args.container, args.follow).await?
        }
        Command::Ps => show::ps(&connect(endpoint).await?).await?,
        Command::Guest(command) => guest::run(command).await?,
        Command::Install(args) => install::run(args)?,
        Command::Pull(args) => pull::run(endpoint, args).await?,
        Command::CredentialProvider(args) => credential_provider::run(args).await?,
    };
    Ok(code)
}
