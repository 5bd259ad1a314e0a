//! The shim without a containerd: its command line, and calls on its socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use serde_json::{Value, json};
use ttrpc::Code;

use super::stage::{Stage, skip};
use crate::bed::handler;
use crate::bed::process::{Finished, Run, patience};

/// The namespace of containers without a containerd.
pub(crate) const NAMESPACE: &str = "direct";

/// How long one call may take.
const CALL: Duration = Duration::from_secs(60);

/// Which containerd's `start` is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// 1.6: TTRPC_ADDRESS alone.
    V16,
    /// 1.7 to 2.2: GRPC_ADDRESS, NAMESPACE and MAX_SHIM_VERSION too.
    V17,
    /// 2.3 and later: BootstrapParams on standard input.
    V23,
}

/// A bundle and the shim that serves it, killed when dropped.
#[derive(Debug)]
pub(crate) struct Bundle<'a> {
    stage: &'a Stage,
    /// The container's id.
    pub(crate) id: String,
    /// The bundle's folder.
    pub(crate) dir: PathBuf,
    program: PathBuf,
}

/// The configuration of a container that runs `script`.
pub(crate) fn spec(stage: &Stage, id: &str, script: &str) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": [], "effective": [], "permitted": [] },
        },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "cgroupsPath": format!("{}/direct-{id}", stage.node.place().cgroup()),
            "namespaces": namespaces,
        },
    })
}

/// Makes a root file system in `root` that has these of busybox's programs.
pub(crate) fn make_root(stage: &Stage, root: &Path, applets: &[&str]) -> Result<()> {
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(root.join("proc"))?;
    fs::copy(stage.node.busybox(), bin.join("busybox"))?;
    for applet in applets {
        std::os::unix::fs::symlink("busybox", bin.join(applet))?;
    }
    Ok(())
}

impl<'a> Bundle<'a> {
    /// A bundle with a busybox root and a container that runs `script`.
    pub(crate) fn new(stage: &'a Stage, script: &str) -> Result<Self> {
        if !stage.handler.is_bulkhead() {
            return skip("only Bulkhead's own shim is driven by hand");
        }
        let program = handler::shim().context("the shim has not been built")?;
        let id = format!("{}-{}", stage.node.place().id(), stage.unique());
        stage.node.expect_shim(NAMESPACE, &id);
        let bundle = Self { stage, dir: stage.node.run().join("direct").join(&id), id, program };
        make_root(stage, &bundle.dir.join("rootfs"), &["sh", "sleep", "true", "cat"])?;
        bundle.write_config(spec(stage, &bundle.id, script).to_string())?;
        Ok(bundle)
    }

    /// Replaces `config.json`.
    pub(crate) fn write_config(&self, bytes: impl AsRef<[u8]>) -> Result<()> {
        fs::write(self.dir.join("config.json"), bytes).context("write config.json")
    }

    /// The runtime options that a containerd sends for this handler: a path in field 2.
    pub(crate) fn options(&self) -> Any {
        let name = format!("{}.toml", self.stage.handler.name());
        let path = self.stage.node.handlers().join(name).display().to_string();
        let length = u8::try_from(path.len()).unwrap_or(u8::MAX);
        // A length below 128 is one byte; the bed's paths are well below.
        let value = [&[0x12, length], path.as_bytes()].concat();
        Any { type_url: "runtimeoptions.v1.Options".to_owned(), value, ..Default::default() }
    }

    /// What `caller` writes to the standard input of `start`.
    pub(crate) fn start_input(&self, caller: Caller) -> Result<Vec<u8>> {
        let options = self.options();
        if caller != Caller::V23 {
            return Ok(options.write_to_bytes()?);
        }
        let extension = Extension { value: MessageField::some(options), ..Default::default() };
        let params = BootstrapParams {
            instance_id: self.id.clone(),
            namespace: NAMESPACE.to_owned(),
            containerd_version: "2.3.0".to_owned(),
            containerd_ttrpc_address: self.stage.node.ttrpc_socket().display().to_string(),
            containerd_grpc_address: self.stage.node.socket().display().to_string(),
            containerd_binary: self.stage.node.program().display().to_string(),
            extensions: vec![extension],
            ..Default::default()
        };
        Ok(params.write_to_bytes()?)
    }

    /// The shim with containerd's flags for `id`, in the bundle.
    pub(crate) fn command(&self, caller: Caller, id: &str) -> Run {
        let node = &self.stage.node;
        let run = Run::new(&self.program).clean_env().dir(&self.dir);
        let run = run.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("GOMAXPROCS", "2");
        let mut run = run.env("TTRPC_ADDRESS", node.ttrpc_socket());
        if caller != Caller::V16 {
            run = run.env("GRPC_ADDRESS", node.socket()).env("NAMESPACE", NAMESPACE);
            run = run.env("MAX_SHIM_VERSION", "2");
        }
        let run = run.args(["-namespace", NAMESPACE, "-address"]).arg(node.socket());
        let run = run.arg("-publish-binary").arg(node.program()).args(["-id", id]);
        run.deadline(Duration::from_secs(30))
    }

    /// The shim with `flags` alone.
    pub(crate) fn bare(&self, flags: &[&str]) -> Run {
        Run::new(&self.program).clean_env().args(flags).deadline(Duration::from_secs(30))
    }

    /// `start` with these bytes on standard input; `None` is /dev/null.
    pub(crate) fn start_raw(&self, caller: Caller, input: Option<Vec<u8>>) -> Result<Finished> {
        let run = self.command(caller, &self.id);
        let run = if let Some(input) = input { run.stdin(input) } else { run };
        run.arg("start").finish()
    }

    /// `start` as `caller` runs it; connects to the address that it prints.
    pub(crate) fn start(&self, caller: Caller) -> Result<Shim> {
        let done = self.start_raw(caller, Some(self.start_input(caller)?))?;
        ensure!(done.code() == 0, "start: exit code {}: {}", done.code(), done.err());
        ensure!(done.stderr.is_empty(), "start wrote to stderr: {:?}", done.err());
        Shim::connect(&address(caller, &done.stdout)?)
    }

    /// `delete` as containerd runs it after a shim has died.
    pub(crate) fn delete(&self) -> Result<Finished> {
        let run = self.command(Caller::V17, &self.id);
        run.arg("-bundle").arg(&self.dir).arg("delete").finish()
    }

    /// The message that creates this bundle's container.
    pub(crate) fn create_request(&self) -> api::CreateTaskRequest {
        api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.dir.display().to_string(),
            options: MessageField::some(self.options()),
            ..Default::default()
        }
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        if let Ok(text) = fs::read_to_string(self.dir.join("address")) {
            if let Ok(shim) = Shim::connect(text.trim()) {
                let id = self.id.clone();
                let kill =
                    api::KillRequest { id: id.clone(), signal: 9, all: true, ..Default::default() };
                let _ = shim.call_v2("Kill", &kill);
                let wait = api::WaitRequest { id: id.clone(), ..Default::default() };
                let _ = shim.ask::<api::WaitResponse>("Wait", &wait);
                let delete = api::DeleteRequest { id: id.clone(), ..Default::default() };
                let _ = shim.call_v2("Delete", &delete);
                let _ =
                    shim.call_v2("Shutdown", &api::ShutdownRequest { id, ..Default::default() });
            }
        }
        let _ = self.delete();
        let _ = fs::remove_dir_all(&self.dir);
        self.stage.drop_cgroup(&format!("{}/direct-{}", self.stage.node.place().cgroup(), self.id));
    }
}

/// The address in the answer of `start`, in one of the forms that `caller` understands.
pub(crate) fn address(caller: Caller, answer: &[u8]) -> Result<String> {
    if caller == Caller::V23 {
        let result = BootstrapResult::parse_from_bytes(answer).context("BootstrapResult")?;
        ensure!(result.version == 2, "version {} in {result:?}", result.version);
        ensure!(result.protocol == "ttrpc", "protocol {:?}", result.protocol);
        return Ok(result.address);
    }
    let text = std::str::from_utf8(answer).context("an answer that is no text")?.trim().to_owned();
    if text.starts_with('{') {
        ensure!(caller != Caller::V16, "1.6 reads no JSON: {text}");
        let json: Value = serde_json::from_str(&text)?;
        ensure!(json["version"] == 2 && json["protocol"] == "ttrpc", "{text}");
        return Ok(json["address"].as_str().context("no address")?.to_owned());
    }
    ensure!(text.starts_with("unix://") && !text.contains('\n'), "answer {text:?}");
    Ok(text)
}

/// The socket's path in an address.
pub(crate) fn socket(address: &str) -> PathBuf {
    PathBuf::from(address.trim_start_matches("unix://"))
}

/// Whether the socket file's mode admits only root.
pub(crate) fn socket_mode(address: &str) -> Result<u32> {
    Ok(fs::metadata(socket(address))?.permissions().mode() & 0o777)
}

/// A connection to a serving shim.
pub(crate) struct Shim {
    client: ttrpc::Client,
    /// Where it listens.
    pub(crate) address: String,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shim({})", self.address)
    }
}

/// A call that the shim refused: the gRPC code and message.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The code.
    pub(crate) code: Code,
    /// The message.
    pub(crate) message: String,
}

impl Shim {
    /// Connects to `address`.
    pub(crate) fn connect(address: &str) -> Result<Self> {
        let path = socket(address);
        ensure!(path.exists(), "{} is not there", path.display());
        ensure!(path.as_os_str().len() <= 106, "{} is too long", path.display());
        let client = ttrpc::Client::connect(address).map_err(|e| anyhow!("{address}: {e}"))?;
        Ok(Self { client, address: address.to_owned() })
    }

    /// One call of `service`; `Ok(Err)` is an answer with a gRPC code.
    pub(crate) fn call(
        &self,
        service: &str,
        method: &str,
        message: &dyn containerd_shim_protos::protobuf::MessageDyn,
    ) -> Result<Result<Vec<u8>, Refusal>> {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.write_to_bytes_dyn()?,
            timeout_nano: i64::try_from(patience(CALL).as_nanos())?,
            ..Default::default()
        };
        match self.client.request(request) {
            Ok(response) => Ok(Ok(response.payload)),
            Err(ttrpc::Error::RpcStatus(status)) => {
                Ok(Err(Refusal { code: status.code(), message: status.message }))
            }
            Err(e) => Err(anyhow!("{method}: {e}")),
        }
    }

    /// One call of the task service of version 2.
    pub(crate) fn call_v2(
        &self,
        method: &str,
        message: &dyn containerd_shim_protos::protobuf::MessageDyn,
    ) -> Result<Result<Vec<u8>, Refusal>> {
        self.call("containerd.task.v2.Task", method, message)
    }

    /// A call that must succeed; returns the answer.
    pub(crate) fn ask<T: Message>(
        &self,
        method: &str,
        message: &dyn containerd_shim_protos::protobuf::MessageDyn,
    ) -> Result<T> {
        match self.call_v2(method, message)? {
            Ok(bytes) => Ok(T::parse_from_bytes(&bytes)?),
            Err(refusal) => Err(anyhow!("{method}: {:?}: {}", refusal.code, refusal.message)),
        }
    }

    /// A call that must be refused with `code` and a message; returns the message.
    pub(crate) fn refused(
        &self,
        method: &str,
        message: &dyn containerd_shim_protos::protobuf::MessageDyn,
        code: Code,
    ) -> Result<String> {
        match self.call_v2(method, message)? {
            Ok(_) => Err(anyhow!("{method} succeeded; {code:?} was due")),
            Err(refusal) => {
                ensure!(refusal.code == code, "{method}: {refusal:?}, not {code:?}");
                ensure!(!refusal.message.is_empty(), "{method}: {code:?} without a message");
                Ok(refusal.message)
            }
        }
    }
}

/// Whether some program listens on the socket of `address`.
pub(crate) fn listens(address: &str) -> bool {
    std::os::unix::net::UnixStream::connect(socket(address)).is_ok()
}
