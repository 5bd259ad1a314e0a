//! `bulkhead`: the node admin's tool.
//!
//! `bulkhead play` reads the Kubernetes YAML that people have and runs its Pods on this node through CRI, without a
//! cluster; `bulkhead guest` makes the image that VM Pods boot; see README.md.
#![forbid(unsafe_code)]

mod args;
mod cgroup;
mod credential_provider;
mod cri;
mod down;
mod exec;
mod find;
mod guest;
mod host;
mod install;
mod interrupt;
mod logs;
mod manifest;
mod names;
mod node;
mod play;
mod pod;
mod pull;
mod quantity;
#[cfg(test)]
mod readme_tests;
mod registry;
mod show;
mod state;
mod stream;
mod takedown;
mod volumes;
mod yaml;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use cri::Cri;

/// The exit code of a run that could not do what it was asked.
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
    let (endpoint, state) = (cli.runtime_endpoint.as_str(), cli.state_dir.as_path());
    let code = match &cli.command {
        Command::Play(args) => play::play(endpoint, state, args).await?,
        Command::Down(args) => takedown::down(&Cri::connect(endpoint).await?, state, args).await?,
        Command::Exec(args) => {
            let cri = Cri::connect(endpoint).await?;
            exec::run(&cri, &args.container, &args.run, &args.command, args.timeout).await?
        }
        Command::Attach(args) => {
            exec::attach(&Cri::connect(endpoint).await?, &args.container, args.stdin).await?
        }
        Command::Logs(args) => {
            show::logs(&Cri::connect(endpoint).await?, &args.container, args.follow).await?
        }
        Command::Ps => show::ps(&Cri::connect(endpoint).await?).await?,
        Command::Guest(command) => guest::run(command).await?,
        Command::Install(args) => install::run(args)?,
        Command::Pull(args) => pull::run(endpoint, args).await?,
        Command::CredentialProvider(args) => credential_provider::run(args).await?,
    };
    Ok(code)
}

/// An error with all its causes, in one line but for lists of faults.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some crates repeat their cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(&format!(": {next}"));
        }
        cause = error.source();
    }
    text
}
