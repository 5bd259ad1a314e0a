//! Verbs and streams that neither CRI nor `ctr run` asks for, sent to the shim by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use ttrpc::Code;

use super::case::{Case, cases};
use super::direct::{delete_request, kill_request, shut_down, start_request, wait_request};
use crate::bed::process::until;
use crate::client::shim::{Bundle, Caller, Shim};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] =
    cases![output_goes_to_files, output_goes_to_a_logger, checkpoint_and_restore];

/// Creates and starts the bundle's container with these outputs.
fn run(bundle: &Bundle<'_>, shim: &Shim, stdout: String, stderr: String) -> Result<()> {
    let request = api::CreateTaskRequest { stdout, stderr, ..bundle.create_request() };
    shim.ask::<api::CreateTaskResponse>("Create", &request)?;
    shim.ask::<api::StartResponse>("Start", &start_request(bundle))?;
    Ok(())
}

/// Waits until the container has exited and deletes it; returns its exit status.
fn end(bundle: &Bundle<'_>, shim: &Shim) -> Result<u32> {
    let exited: api::WaitResponse = shim.ask("Wait", &wait_request(bundle))?;
    shim.ask::<api::DeleteResponse>("Delete", &delete_request(bundle))?;
    Ok(exited.exit_status)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn output_goes_to_files(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "echo out; echo err >&2; exit 3")?;
    let shim = bundle.start(Caller::V17)?;
    let out = bundle.dir.join("logs/out");
    let err = bundle.dir.join("logs/err");
    let uri = |path: &Path| format!("file://{}", path.display());
    run(&bundle, &shim, uri(&out), uri(&err))?;
    let status = end(&bundle, &shim)?;
    ensure!(status == 3, "exit status {status}");
    let texts = (read(&out)?, read(&err)?);
    ensure!(texts == ("out\n".to_owned(), "err\n".to_owned()), "{texts:?}");
    shut_down(&shim, &bundle)
}

fn output_goes_to_a_logger(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "echo out; echo err >&2")?;
    let shim = bundle.start(Caller::V17)?;
    let logger = bundle.dir.join("logger");
    let log = bundle.dir.join("log.txt");
    let script = format!(
        "#!/bin/sh\nexec 5>&-\n(echo $1 $2 $CONTAINER_ID; cat <&3; cat <&4) > {}\n",
        log.display()
    );
    fs::write(&logger, script)?;
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755))?;
    let uri = format!("binary://{}?tag=t1", logger.display());
    run(&bundle, &shim, uri.clone(), uri)?;
    end(&bundle, &shim)?;
    let text = read(&log)?;
    ensure!(text == format!("tag t1 {}\nout\nerr\n", bundle.id), "the logger wrote {text:?}");
    shut_down(&shim, &bundle)
}

/// The number on the last whole line of a counting container's output.
fn count(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    Ok(whole.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0))
}

fn checkpoint_and_restore(stage: &Stage) -> Result<()> {
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    let bundle = Bundle::new(stage, script)?;
    let shim = bundle.start(Caller::V17)?;
    let first = bundle.dir.join("first");
    let second = bundle.dir.join("second");
    let patience = Duration::from_secs(20);
    run(&bundle, &shim, format!("file://{}", first.display()), String::new())?;
    until("ten ticks", patience, || Ok((count(&first)? >= 10).then_some(())))?;

    let image = bundle.dir.join("image");
    let options = CheckpointOptions { exit: true, ..Default::default() };
    let request = api::CheckpointTaskRequest {
        id: bundle.id.clone(),
        path: image.display().to_string(),
        options: MessageField::some(Any {
            type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
            value: options.write_to_bytes()?,
            ..Default::default()
        }),
        ..Default::default()
    };
    if stage.handler.is_vm() {
        let message = shim.refused("Checkpoint", &request, Code::UNIMPLEMENTED)?;
        ensure!(!image.exists(), "refused ({message}), yet something was written");
        let before = count(&first)?;
        until("ticks after the refusal", patience, || Ok((count(&first)? > before).then_some(())))?;
        shim.ask::<api::Empty>("Kill", &kill_request(&bundle, 9))?;
        end(&bundle, &shim)?;
        return shut_down(&shim, &bundle);
    }
    shim.ask::<api::Empty>("Checkpoint", &request)?;
    end(&bundle, &shim)?;
    let before = count(&first)?;

    let request = api::CreateTaskRequest {
        stdout: format!("file://{}", second.display()),
        checkpoint: image.display().to_string(),
        ..bundle.create_request()
    };
    shim.ask::<api::CreateTaskResponse>("Create", &request)?;
    shim.ask::<api::StartResponse>("Start", &start_request(&bundle))?;
    until("ticks after the restore", patience, || Ok((count(&second)? > before).then_some(())))?;
    let text = read(&second)?;
    let resumed: u64 = text.lines().next().unwrap_or_default().parse()?;
    ensure!(resumed >= before, "it counts from {resumed} again, after {before}");
    shim.ask::<api::Empty>("Kill", &kill_request(&bundle, 9))?;
    end(&bundle, &shim)?;
    shut_down(&shim, &bundle)
}
