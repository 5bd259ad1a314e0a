//! Between containerd's messages and this project's own types: protobuf ends here.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CreateTaskRequest, DeleteResponse, ExecProcessRequest, Mount,
    PidsResponse, ProcessInfo as WireProcess, ResizePtyRequest, StateResponse, Status,
    UpdateTaskRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{CodedInputStream, Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::ttrpc;
use sandbox_core::{
    Bundle, CreateContainer, Error, ExecProcess, Exit, Id, Kind, Phase, Resources, Result,
    RootfsMount, StdioPaths, TerminalSize,
};

use crate::role::Role;
use crate::task::{ProcessInfo, Snapshot};

/// An error as the caller gets it.
pub(crate) fn status(error: &Error) -> ttrpc::Error {
    use ttrpc::Code;
    let code = match error.kind() {
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::PermissionDenied => Code::PERMISSION_DENIED,
        Kind::Internal => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error))
}

/// A moment as protobuf has it.
pub(crate) fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    MessageField::some(Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // Always below 10^9.
        nanos: since.subsec_nanos().try_into().unwrap_or(0),
        ..Timestamp::default()
    })
}

/// A container to create, and its part in the Pod. Reads its bundle.
pub(crate) fn create(request: CreateTaskRequest) -> Result<(Role, CreateContainer)> {
    let id = Id::new(request.id)?;
    let bundle = Bundle::load(request.bundle)?;
    let role = Role::of(bundle.spec())?;
    let filled = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let create = CreateContainer {
        id,
        bundle,
        rootfs: request.rootfs.into_iter().map(rootfs).collect(),
        stdio: stdio(request.stdin, request.stdout, request.stderr, request.terminal),
        checkpoint: filled(&request.checkpoint),
    };
    Ok((role, create))
}

fn rootfs(mount: Mount) -> RootfsMount {
    RootfsMount { kind: mount.type_, source: mount.source, options: mount.options }
}

fn stdio(stdin: String, stdout: String, stderr: String, terminal: bool) -> StdioPaths {
    let filled = |path: String| (!path.is_empty()).then_some(path);
    StdioPaths {
        stdin: filled(stdin),
        stdout: filled(stdout),
        stderr: if terminal { None } else { filled(stderr) },
        terminal,
    }
}

/// A process to add.
pub(crate) fn exec(request: ExecProcessRequest) -> Result<ExecProcess> {
    let spec = request.spec.into_option().unwrap_or_default();
    Ok(ExecProcess {
        id: Id::new(request.exec_id)?,
        spec: json(&spec, "process")?,
        stdio: stdio(request.stdin, request.stdout, request.stderr, request.terminal),
    })
}

/// Limits to set.
pub(crate) fn resources(request: &UpdateTaskRequest) -> Result<Resources> {
    match request.resources.as_ref() {
        Some(any) => json(any, "resources"),
        None => Err(Error::new(Kind::InvalidArgument, "the update names no resources")),
    }
}

/// An `Any` that holds JSON of the OCI runtime specification, as containerd's typeurl writes it.
fn json<T: serde::de::DeserializeOwned>(any: &Any, what: &str) -> Result<T> {
    serde_json::from_slice(&any.value).map_err(|e| {
        Error::new(Kind::InvalidArgument, format!("the {what} specification is not valid: {e}"))
    })
}

/// Where a checkpoint goes, and whether the container ends with it.
pub(crate) fn checkpoint(request: &CheckpointTaskRequest) -> Result<(PathBuf, bool)> {
    if request.path.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "the checkpoint names no path"));
    }
    let bytes = request.options.as_ref().map_or(&[][..], |any| &any.value);
    let exit = checkpoint_exits(bytes).map_err(|e| {
        Error::new(Kind::InvalidArgument, format!("the checkpoint options cannot be decoded: {e}"))
    })?;
    Ok((PathBuf::from(&request.path), exit))
}

/// `exit` (1) of `containerd.runc.v1.CheckpointOptions`, the message every client sends.
fn checkpoint_exits(bytes: &[u8]) -> containerd_shim_protos::protobuf::Result<bool> {
    use containerd_shim_protos::shim::oci::CheckpointOptions;
    // An empty message stands for the defaults.
    CodedInputStream::from_bytes(bytes).read_raw_tag_or_eof()?;
    CheckpointOptions::parse_from_bytes(bytes).map(|options| options.exit)
}

/// A terminal's size, within what the kernel can hold.
pub(crate) fn terminal_size(request: &ResizePtyRequest) -> Result<TerminalSize> {
    let cells = |count: u32| {
        u16::try_from(count).map_err(|_| {
            let message = format!("a terminal has at most 65535 cells in a row, not {count}");
            Error::new(Kind::InvalidArgument, message)
        })
    };
    Ok(TerminalSize { width: cells(request.width)?, height: cells(request.height)? })
}

/// A signal's number.
pub(crate) fn signal(number: u32) -> Result<i32> {
    match i32::try_from(number) {
        Ok(signal @ 0..=64) => Ok(signal),
        _ => Err(Error::new(
            Kind::InvalidArgument,
            format!("signal {number} does not exist; they go from 1 to 64"),
        )),
    }
}

/// What is known of a process, for `State`.
pub(crate) fn state(snapshot: Snapshot) -> StateResponse {
    let status = match snapshot.phase {
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Exited(_) => Status::STOPPED,
    };
    let mut response = StateResponse {
        id: snapshot.id,
        bundle: snapshot.bundle.display().to_string(),
        pid: snapshot.pid,
        status: status.into(),
        stdin: snapshot.stdio.stdin.unwrap_or_default(),
        stdout: snapshot.stdio.stdout.unwrap_or_default(),
        stderr: snapshot.stdio.stderr.unwrap_or_default(),
        terminal: snapshot.stdio.terminal,
        exec_id: snapshot.exec_id,
        ..StateResponse::default()
    };
    if let Phase::Exited(exit) = snapshot.phase {
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
    }
    response
}

/// An exit, for `Wait`.
pub(crate) fn waited(exit: Exit) -> WaitResponse {
    WaitResponse {
        exit_status: exit.status,
        exited_at: timestamp(exit.at),
        ..WaitResponse::default()
    }
}

/// An exit, for `Delete`.
pub(crate) fn deleted(pid: u32, exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: timestamp(exit.at),
        ..DeleteResponse::default()
    }
}

/// The answer of the short call `delete`, encoded.
///
/// # Errors
///
/// [`Kind::Internal`] when it cannot be encoded.
pub(crate) fn delete_response(exit: Exit) -> Result<Vec<u8>> {
    let response = deleted(0, exit);
    let failed = |e| Error::new(Kind::Internal, format!("answering containerd: {e}"));
    response.write_to_bytes().map_err(failed)
}

/// Processes, for `Pids`.
pub(crate) fn pids(processes: Vec<ProcessInfo>) -> PidsResponse {
    let wire = |process: ProcessInfo| WireProcess {
        pid: process.pid,
        info: process.exec_id.map(details).into(),
        ..WireProcess::default()
    };
    PidsResponse { processes: processes.into_iter().map(wire).collect(), ..PidsResponse::default() }
}

fn details(exec_id: String) -> Any {
    let details = ProcessDetails { exec_id, ..ProcessDetails::default() };
    Any {
        type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
        // Writing to memory cannot fail.
        value: details.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked() {
        let mut size = ResizePtyRequest { width: 80, height: 24, ..Default::default() };
        assert_eq!(terminal_size(&size).unwrap(), TerminalSize { width: 80, height: 24 });
        size.width = 70_000;
        assert_eq!(signal(9).unwrap(), 9);
        for error in [terminal_size(&size).unwrap_err(), signal(65).unwrap_err()] {
            assert_eq!(error.kind(), Kind::InvalidArgument);
        }
    }

    #[test]
    fn a_process_specification_must_be_json() {
        let any = Any { value: b"{\"args\":3}".to_vec(), ..Any::default() };
        let request = ExecProcessRequest {
            exec_id: "e".into(),
            spec: Some(any).into(),
            ..ExecProcessRequest::default()
        };
        let error = exec(request).unwrap_err().to_string();
        assert!(error.starts_with("the process specification is not valid: "), "{error}");
    }

    #[test]
    fn checkpoint_options_may_be_empty() {
        let mut request = CheckpointTaskRequest { path: "/p".into(), ..Default::default() };
        assert_eq!(checkpoint(&request).unwrap(), ("/p".into(), false));
        let exit = Any { value: vec![8, 1], ..Any::default() };
        request.options = Some(exit).into();
        assert_eq!(checkpoint(&request).unwrap(), ("/p".into(), true));
    }
}
