//! A runtime that is missing, broken or stuck, or a wrong configuration: one clear error, and no
//! leak.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::case::{Case, cases};
use crate::bed::fault::{FAILING_TEXT, Fault};
use crate::bed::process::patience;
use crate::client::pod::{Pod, pod_config};
use crate::client::stage::{Stage, skip};

pub(super) const CASES: &[Case] = cases![
    runtime_missing,
    runtime_failing,
    runtime_hanging,
    handler_file_missing,
    handler_file_with_an_unknown_key,
    handler_unknown_to_containerd,
    image_missing,
    program_missing,
];

/// Runs a Pod under the broken handler; returns the error's text.
fn refused(stage: &Stage, fault: Fault) -> Result<String> {
    let handler = format!("{}-{}", stage.handler.name(), fault.name());
    match Pod::run_handler(stage, pod_config(stage)?, &handler) {
        Ok(_) => bail!("a Pod runs under {handler}"),
        Err(e) => Ok(format!("{e:#}")),
    }
}

fn runtime_missing(stage: &Stage) -> Result<()> {
    let error = refused(stage, Fault::Missing)?;
    ensure!(error.contains("no-such-runtime"), "the error does not name the program: {error}");
    Ok(())
}

fn runtime_failing(stage: &Stage) -> Result<()> {
    let error = refused(stage, Fault::Failing)?;
    if stage.handler.is_bulkhead() {
        ensure!(error.contains(FAILING_TEXT), "the runtime's own error is lost: {error}");
    }
    Ok(())
}

fn runtime_hanging(stage: &Stage) -> Result<()> {
    if !stage.handler.is_bulkhead() {
        return skip("runc's shim waits for a stuck runc for ever");
    }
    let begun = Instant::now();
    let error = refused(stage, Fault::Hanging)?;
    ensure!(begun.elapsed() < patience(Duration::from_secs(80)), "it took {:?}", begun.elapsed());
    ensure!(error.contains("runtime-hanging"), "the error does not name the program: {error}");
    Ok(())
}

fn handler_file_missing(stage: &Stage) -> Result<()> {
    if !stage.handler.is_bulkhead() {
        return skip("runc has no handler file");
    }
    let error = refused(stage, Fault::NoFile)?;
    ensure!(error.contains("-nofile.toml"), "the error does not name the file: {error}");
    Ok(())
}

fn handler_file_with_an_unknown_key(stage: &Stage) -> Result<()> {
    if !stage.handler.is_bulkhead() {
        return skip("runc has no handler file");
    }
    let error = refused(stage, Fault::UnknownKey)?;
    ensure!(error.contains("no_such_key"), "the error does not name the key: {error}");
    Ok(())
}

fn handler_unknown_to_containerd(stage: &Stage) -> Result<()> {
    match Pod::run_handler(stage, pod_config(stage)?, "no-such-handler") {
        Ok(_) => bail!("a Pod runs under an unknown handler"),
        Err(e) => ensure!(format!("{e:#}").contains("no-such-handler"), "{e:#}"),
    }
    Ok(())
}

fn image_missing(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = crate::client::pod::shell("true");
    let image = "bulkhead.invalid/no/such:image".to_owned();
    config.image = Some(k8s_cri::v1::ImageSpec { image, ..Default::default() });
    ensure!(pod.create(config).is_err(), "a container of an image that is not there");
    Ok(())
}

fn program_missing(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let other = pod.start("other", crate::client::pod::shell("sleep 1000"))?;
    let mut config = crate::client::pod::command(&["/no/such/program"]);
    config.metadata =
        Some(k8s_cri::v1::ContainerMetadata { name: "broken".to_owned(), attempt: 0 });
    let container = pod.create(config)?;
    match stage.cri.start(&container.id) {
        Err(e) => ensure!(format!("{e:#}").contains("/no/such/program"), "{e:#}"),
        Ok(()) => bail!("a program that is not there was started"),
    }
    let status = container.exited()?;
    ensure!(status.exit_code != 0, "exit code {}", status.exit_code);
    ensure!(other.out("echo fine")? == "fine", "the Pod's other container");
    Ok(())
}
