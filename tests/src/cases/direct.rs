//! The shim's own door: every form of `start`, refusals with their gRPC codes, garbage.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use ttrpc::Code;

use super::case::{Case, cases};
use crate::bed::process::{Finished, until};
use crate::client::shim::{self, Bundle, Caller, Shim};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![
    start_answers_every_containerd,
    start_without_options,
    start_refuses_garbage,
    start_refuses_bad_ids,
    both_task_services_answer,
    what_is_not_there_is_unimplemented,
    version_and_info,
    life_of_a_task,
    wrong_order_is_refused,
    config_that_is_broken,
    rootfs_that_is_no_directory,
    garbage_on_the_socket,
    delete_is_idempotent,
];

fn start_answers_every_containerd(stage: &Stage) -> Result<()> {
    for caller in [Caller::V16, Caller::V17, Caller::V23] {
        let bundle = Bundle::new(stage, "sleep 1000")?;
        let first = bundle.start(caller).with_context(|| format!("{caller:?}"))?;
        let mode = shim::socket_mode(&first.address)?;
        ensure!(mode & 0o077 == 0, "{caller:?}: the socket's mode is {mode:o}");
        let written = std::fs::read_to_string(bundle.dir.join("address"))?;
        ensure!(written.trim() == first.address, "{caller:?}: the address file has {written:?}");
        let again = bundle.start(caller)?;
        ensure!(
            again.address == first.address,
            "{caller:?}: a second start printed another address"
        );
        shut_down(&first, &bundle)?;
    }
    Ok(())
}

/// After Shutdown a shim without tasks exits and removes its socket.
pub(super) fn shut_down(shim: &Shim, bundle: &Bundle<'_>) -> Result<()> {
    let request = api::ShutdownRequest { id: bundle.id.clone(), ..Default::default() };
    let _ = shim.call_v2("Shutdown", &request);
    until("the shim has removed its socket", Duration::from_secs(10), || {
        Ok((!shim::socket(&shim.address).exists()).then_some(()))
    })
}

/// A handler without an options table: standard input is /dev/null.
fn start_without_options(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let done = bundle.start_raw(Caller::V17, None)?;
    ensure!(done.code() == 0, "exit code {}: {}", done.code(), done.err());
    let address = shim::address(Caller::V17, &done.stdout)?;
    shut_down(&Shim::connect(&address)?, &bundle)
}

/// A refusal has a code other than 0, one message on stderr, and nothing that an old containerd
/// would take for an address.
fn is_refusal(what: &str, done: &Finished) -> Result<()> {
    ensure!(done.code() != 0, "{what}: accepted: {}", done.out());
    ensure!(!done.err().trim().is_empty(), "{what}: refused without a message");
    ensure!(done.stdout.is_empty(), "{what}: stdout {:?}", done.out());
    ensure!(!done.err().contains("panicked"), "{what}: {}", done.err());
    Ok(())
}

fn start_refuses_garbage(stage: &Stage) -> Result<()> {
    let noise: Vec<u8> =
        (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let long = [0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, b'x'];
    for (what, input) in [("noise", noise), ("a length beyond the end", long.to_vec())] {
        let bundle = Bundle::new(stage, "sleep 1000")?;
        is_refusal(what, &bundle.start_raw(Caller::V17, Some(input))?)?;
        ensure!(!bundle.dir.join("address").exists(), "{what}: an address was written");
    }
    Ok(())
}

fn start_refuses_bad_ids(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let long = "x".repeat(300);
    for id in ["a/b", "../escape", "", long.as_str(), "..", "a b", "-x/../.."] {
        let run = bundle.command(Caller::V17, id).stdin(bundle.start_input(Caller::V17)?);
        is_refusal(&format!("id {id:.20?}"), &run.arg("start").finish()?)?;
    }
    let shim = bundle.start(Caller::V17)?;
    for id in ["a/b", "../escape", "", long.as_str(), "a\0b"] {
        let request = api::CreateTaskRequest { id: id.to_owned(), ..bundle.create_request() };
        let message = shim.refused("Create", &request, Code::INVALID_ARGUMENT);
        message.with_context(|| format!("id {id:.20?}"))?;
    }
    shut_down(&shim, &bundle)
}

fn both_task_services_answer(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let shim = bundle.start(Caller::V17)?;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = api::ConnectRequest { id: "unknown".to_owned(), ..Default::default() };
        let answer = shim.call(service, "Connect", &request)?;
        let bytes = answer.map_err(|e| anyhow::anyhow!("{service}: {e:?}"))?;
        let connect = api::ConnectResponse::parse_from_bytes(&bytes)?;
        ensure!(connect.shim_pid > 0 && connect.task_pid == 0, "{service}: {connect:?}");
    }
    shut_down(&shim, &bundle)
}

/// containerd tells by this code that a shim does not have a service, and goes on without it.
fn what_is_not_there_is_unimplemented(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let shim = bundle.start(Caller::V17)?;
    for (service, method) in [
        ("containerd.task.v3.Task", "NoSuchMethod"),
        ("containerd.runtime.sandbox.v1.Sandbox", "Platform"),
        ("containerd.services.streaming.v1.Streaming", "Stream"),
        ("containerd.services.transfer.v1.Transfer", "Transfer"),
    ] {
        match shim.call(service, method, &api::Empty::default())? {
            Ok(_) => bail!("{service}/{method} succeeded"),
            Err(refusal) => {
                ensure!(refusal.code == Code::UNIMPLEMENTED, "{service}/{method}: {refusal:?}");
            }
        }
    }
    shut_down(&shim, &bundle)
}

fn version_and_info(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    for flag in ["-v", "--version"] {
        let done = bundle.bare(&[flag]).finish()?;
        ensure!(done.code() == 0 && !done.out().trim().is_empty(), "{flag}: {}", done.err());
    }
    for input in [Vec::new(), bundle.start_input(Caller::V17)?] {
        let done = bundle.bare(&["-info"]).stdin(input).finish()?;
        ensure!(done.code() == 0, "-info: exit code {}: {}", done.code(), done.err());
        let info = containerd_shim_protos::types::introspection::RuntimeInfo::parse_from_bytes(
            &done.stdout,
        )?;
        ensure!(!info.name.is_empty(), "-info prints no name");
        let features: serde_json::Value = serde_json::from_slice(&info.features.value)?;
        ensure!(features.is_object(), "-info: features {features}");
    }
    Ok(())
}

pub(super) fn start_request(bundle: &Bundle<'_>) -> api::StartRequest {
    api::StartRequest { id: bundle.id.clone(), ..Default::default() }
}

pub(super) fn kill_request(bundle: &Bundle<'_>, signal: u32) -> api::KillRequest {
    api::KillRequest { id: bundle.id.clone(), signal, ..Default::default() }
}

pub(super) fn wait_request(bundle: &Bundle<'_>) -> api::WaitRequest {
    api::WaitRequest { id: bundle.id.clone(), ..Default::default() }
}

pub(super) fn delete_request(bundle: &Bundle<'_>) -> api::DeleteRequest {
    api::DeleteRequest { id: bundle.id.clone(), ..Default::default() }
}

fn life_of_a_task(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let shim = bundle.start(Caller::V23)?;
    let created: api::CreateTaskResponse = shim.ask("Create", &bundle.create_request())?;
    ensure!(created.pid > 1, "pid {}", created.pid);
    let started: api::StartResponse = shim.ask("Start", &start_request(&bundle))?;
    ensure!(started.pid == created.pid, "pid {} became {}", created.pid, started.pid);
    let state = api::StateRequest { id: bundle.id.clone(), ..Default::default() };
    let now: api::StateResponse = shim.ask("State", &state)?;
    ensure!(now.status.enum_value() == Ok(api::Status::RUNNING), "{now:?}");
    let pids = api::PidsRequest { id: bundle.id.clone(), ..Default::default() };
    let seen: api::PidsResponse = shim.ask("Pids", &pids)?;
    ensure!(!seen.processes.is_empty(), "no pid of a running task");
    shim.ask::<api::Empty>("Kill", &kill_request(&bundle, 9))?;
    let end: api::WaitResponse = shim.ask("Wait", &wait_request(&bundle))?;
    ensure!(end.exit_status == 137, "exit status {}", end.exit_status);
    let again: api::WaitResponse = shim.ask("Wait", &wait_request(&bundle))?;
    ensure!(again.exit_status == 137, "waiting again: {}", again.exit_status);
    // An empty list makes containerd 1.7 and later reap the shim, and the exit code with it.
    let seen: api::PidsResponse = shim.ask("Pids", &pids)?;
    ensure!(!seen.processes.is_empty(), "no pid of a task that is not deleted yet");
    let gone: api::DeleteResponse = shim.ask("Delete", &delete_request(&bundle))?;
    ensure!(gone.exit_status == 137, "Delete returns {}", gone.exit_status);
    shim.refused("State", &state, Code::NOT_FOUND)?;
    shim.refused("Delete", &delete_request(&bundle), Code::NOT_FOUND)?;
    shut_down(&shim, &bundle)
}

fn wrong_order_is_refused(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let shim = bundle.start(Caller::V17)?;
    shim.refused("Start", &start_request(&bundle), Code::NOT_FOUND)?;
    shim.refused("Kill", &kill_request(&bundle, 9), Code::NOT_FOUND)?;
    shim.ask::<api::CreateTaskResponse>("Create", &bundle.create_request())?;
    shim.refused("Create", &bundle.create_request(), Code::ALREADY_EXISTS)?;
    shim.ask::<api::StartResponse>("Start", &start_request(&bundle))?;
    shim.refused("Start", &start_request(&bundle), Code::FAILED_PRECONDITION)?;
    shim.refused("Delete", &delete_request(&bundle), Code::FAILED_PRECONDITION)?;
    let exec = exec_request(&bundle, "x1");
    shim.ask::<api::Empty>("Exec", &exec)?;
    shim.refused("Exec", &exec, Code::ALREADY_EXISTS)?;
    let unknown = api::StartRequest {
        id: bundle.id.clone(),
        exec_id: "unknown".to_owned(),
        ..Default::default()
    };
    shim.refused("Start", &unknown, Code::NOT_FOUND)?;
    shim.ask::<api::Empty>("Kill", &kill_request(&bundle, 9))?;
    shim.ask::<api::WaitResponse>("Wait", &wait_request(&bundle))?;
    shim.refused("Kill", &kill_request(&bundle, 9), Code::NOT_FOUND)?;
    shim.refused("Exec", &exec_request(&bundle, "x2"), Code::FAILED_PRECONDITION)?;
    shim.ask::<api::DeleteResponse>("Delete", &delete_request(&bundle))?;
    shut_down(&shim, &bundle)
}

fn exec_request(bundle: &Bundle<'_>, exec_id: &str) -> api::ExecProcessRequest {
    let process =
        br#"{"user":{"uid":0,"gid":0},"args":["/bin/true"],"cwd":"/","env":["PATH=/bin"]}"#;
    let spec = containerd_shim_protos::protobuf::well_known_types::any::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: process.to_vec(),
        ..Default::default()
    };
    api::ExecProcessRequest {
        id: bundle.id.clone(),
        exec_id: exec_id.to_owned(),
        spec: containerd_shim_protos::protobuf::MessageField::some(spec),
        ..Default::default()
    }
}

/// `start` may refuse already; otherwise Create must, with the file's name in the message.
fn config_that_is_broken(stage: &Stage) -> Result<()> {
    let good = shim::spec(stage, "x", "true").to_string();
    let wrong = good.replace("\"args\":[", "\"args\":7,\"was\":[");
    let cut = &good[..good.len() / 2];
    let texts = [("truncated", cut), ("of wrong types", &wrong), ("empty", ""), ("a list", "[]")];
    for (what, text) in texts {
        let bundle = Bundle::new(stage, "true")?;
        bundle.write_config(text)?;
        refused_somewhere(&bundle, what)?;
    }
    let bundle = Bundle::new(stage, "true")?;
    std::fs::remove_file(bundle.dir.join("config.json"))?;
    refused_somewhere(&bundle, "missing")
}

fn refused_somewhere(bundle: &Bundle<'_>, what: &str) -> Result<()> {
    let done = bundle.start_raw(Caller::V17, Some(bundle.start_input(Caller::V17)?))?;
    if done.code() != 0 {
        is_refusal(what, &done)?;
        ensure!(done.err().contains("config.json"), "{what}: no file named: {}", done.err());
        return Ok(());
    }
    let shim = Shim::connect(&shim::address(Caller::V17, &done.stdout)?)?;
    match shim.call_v2("Create", &bundle.create_request())? {
        Ok(_) => anyhow::bail!("config.json {what}: a container was created"),
        Err(refusal) => {
            ensure!(refusal.message.contains("config.json"), "{what}: {refusal:?}");
            shut_down(&shim, bundle)
        }
    }
}

fn rootfs_that_is_no_directory(stage: &Stage) -> Result<()> {
    for what in ["missing", "a file"] {
        let bundle = Bundle::new(stage, "true")?;
        let rootfs = bundle.dir.join("rootfs");
        std::fs::remove_dir_all(&rootfs)?;
        if what == "a file" {
            std::fs::write(&rootfs, "not a directory")?;
        }
        let shim = bundle.start(Caller::V17)?;
        let refused = shim.call_v2("Create", &bundle.create_request())?;
        let Err(refusal) = refused else { anyhow::bail!("rootfs {what}: a container was created") };
        ensure!(refusal.message.contains("rootfs"), "{what}: {refusal:?}");
        shut_down(&shim, &bundle)?;
    }
    Ok(())
}

/// Frames are 10 bytes of header (length, stream, type, flags) and a payload.
fn garbage_on_the_socket(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let shim = bundle.start(Caller::V17)?;
    let frame = |length: u32, stream: u32, kind: u8, payload: &[u8]| {
        let mut bytes = [length.to_be_bytes(), stream.to_be_bytes()].concat();
        bytes.extend([kind, 0]);
        bytes.extend(payload);
        bytes
    };
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(40_503) >> 7) as u8).collect();
    let attacks = [
        noise.clone(),
        frame(u32::MAX, 1, 1, &noise),
        frame(8, 1, 1, b"not prot"),
        frame(0, 0, 0, b""),
        frame(4, 2, 9, b"abcd"),
        frame(1000, 1, 1, b"cut short"),
        Vec::new(),
    ];
    for attack in attacks {
        let mut stream = UnixStream::connect(shim::socket(&shim.address))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        // The shim may hang up in the middle, and should.
        let _ = stream.write_all(&attack);
        drop(stream);
        let request = api::ConnectRequest { id: bundle.id.clone(), ..Default::default() };
        Shim::connect(&shim.address)?.ask::<api::ConnectResponse>("Connect", &request)?;
    }
    let answer = shim.call("no.such.Service", "Connect", &api::ConnectRequest::default())?;
    ensure!(answer.is_err(), "a service that is not there answered");
    let answer = shim.call_v2("NoSuchMethod", &api::ConnectRequest::default())?;
    ensure!(answer.is_err(), "a method that is not there answered");
    shut_down(&shim, &bundle)
}

fn delete_is_idempotent(stage: &Stage) -> Result<()> {
    let bundle = Bundle::new(stage, "sleep 1000")?;
    let shim = bundle.start(Caller::V17)?;
    shim.ask::<api::CreateTaskResponse>("Create", &bundle.create_request())?;
    shim.ask::<api::StartResponse>("Start", &start_request(&bundle))?;
    let connect: api::ConnectResponse =
        shim.ask("Connect", &api::ConnectRequest { id: bundle.id.clone(), ..Default::default() })?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(connect.shim_pid)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    for round in ["first", "second"] {
        let done = bundle.delete()?;
        ensure!(done.code() == 0, "{round}: exit code {}: {}", done.code(), done.err());
        let answer = api::DeleteResponse::parse_from_bytes(&done.stdout)
            .with_context(|| format!("{round}: {:?}", done.out()))?;
        ensure!(answer.exit_status == 137, "{round}: exit status {}", answer.exit_status);
    }
    ensure!(!shim::listens(&shim.address), "someone listens on {}", shim.address);
    Ok(())
}
