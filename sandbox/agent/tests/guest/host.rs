//! The host's side: boots the guest, calls the agent, connects streams.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent_api::agent::*;
use agent_api::agent_ttrpc::AgentClient;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Host {
    pub(crate) client: AgentClient,
    dir: tempfile::TempDir,
    vm: Child,
    /// The VM is killed when this is closed.
    _alive: ChildStdin,
    next: AtomicU32,
}

/// A container with its connected streams.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) stdin: Option<UnixStream>,
    pub(crate) stdout: Option<UnixStream>,
    pub(crate) stderr: Option<UnixStream>,
    pub(crate) terminal: Option<UnixStream>,
}

pub(crate) fn ctx() -> Context {
    context::with_duration(PATIENCE)
}

pub(crate) fn process(container: &str, exec: &str) -> ProcessRef {
    ProcessRef { container: container.into(), exec: exec.into(), ..Default::default() }
}

pub(crate) fn container(id: &str) -> ContainerRef {
    ContainerRef { container: id.into(), ..Default::default() }
}

pub(crate) fn outputs() -> agent_api::agent::Stdio {
    agent_api::agent::Stdio { stdout: true, stderr: true, ..Default::default() }
}

pub(crate) fn code(error: ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message.clone()),
        other => panic!("not a status: {other}"),
    }
}

/// A specification like containerd's.
pub(crate) fn spec(args: &[&str]) -> Value {
    let caps =
        ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE", "CAP_MKNOD"];
    json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs"},
        "hostname": "elsewhere",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [10]}, "args": args, "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "oomScoreAdj": 100,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "ro", "nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
                {"type": "network", "path": "/var/run/netns/nowhere"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 512}},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

/// The share's image, with a writable layer in the guest.
pub(crate) fn shared() -> Rootfs {
    let mut rootfs = Rootfs { overlay: true, ..Default::default() };
    rootfs.set_path(format!("{}/rootfs", agent_api::SHARE_MOUNT));
    rootfs
}

impl Host {
    /// Boots a guest and waits for its connection.
    #[expect(clippy::disallowed_methods, reason = "tests/boot is a program of this test")]
    pub(crate) async fn boot() -> Self {
        let dir = tempfile::tempdir().unwrap();
        image(&dir.path().join("share/rootfs"));
        image(&dir.path().join("image"));
        let listener = UnixListener::bind(dir.path().join("vm.vsock_1024")).unwrap();
        let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot");
        let mut vm = Command::new(boot).arg(dir.path()).stdin(Stdio::piped()).spawn().unwrap();
        let alive = vm.stdin.take().unwrap();
        let console = dir.path().join("console");
        let Ok(accepted) = timeout(PATIENCE, listener.accept()).await else {
            panic!(
                "the guest does not connect:\n{}",
                std::fs::read_to_string(console).unwrap_or_default()
            );
        };
        let client = AgentClient::new(Client::new(Socket::new(accepted.unwrap().0)));
        Self { client, dir, vm, _alive: alive, next: AtomicU32::new(0) }
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    /// A connection to a port of the guest, and the answer to its header.
    pub(crate) async fn connect(&self, port: u32, header: &str) -> (UnixStream, u8) {
        let mut stream = UnixStream::connect(self.dir.path().join("vm.vsock")).await.unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.unwrap();
        let mut ok = Vec::new();
        while !ok.ends_with(b"\n") {
            ok.push(stream.read_u8().await.expect("the port is refused"));
        }
        assert!(ok.starts_with(b"OK "), "{ok:?}");
        stream.write_all(format!("{header}\n").as_bytes()).await.unwrap();
        let answer = timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
        (stream, answer)
    }

    async fn stream(&self, wanted: bool, header: String) -> Option<UnixStream> {
        if !wanted {
            return None;
        }
        let (stream, answer) = self.connect(agent_api::STREAM_PORT, &header).await;
        assert_eq!(answer, agent_api::ACCEPTED, "{header}");
        Some(stream)
    }

    pub(crate) fn request(
        &self,
        spec: &Value,
        rootfs: Rootfs,
        stdio: agent_api::agent::Stdio,
    ) -> CreateContainerRequest {
        let id = format!(
            "c{}-{}",
            self.next.fetch_add(1, Ordering::Relaxed),
            "0123456789abcdef".repeat(4)
        );
        CreateContainerRequest {
            container: id,
            spec: spec.to_string().into_bytes(),
            rootfs: Some(rootfs).into(),
            stdio: Some(stdio).into(),
            ..Default::default()
        }
    }

    /// Creates a container and connects its streams.
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Container {
        let created = self.client.create_container(ctx(), &request).await;
        let created = created.unwrap_or_else(|error| panic!("{error}\n{}", self.console()));
        assert!(created.pid > 1);
        self.connected(&request.container, "", &request.stdio).await
    }

    async fn connected(&self, id: &str, exec: &str, stdio: &agent_api::agent::Stdio) -> Container {
        let name = if exec.is_empty() { "-" } else { exec };
        Container {
            stdin: self.stream(stdio.stdin, format!("{id} {name} stdin")).await,
            stdout: self.stream(stdio.stdout, format!("{id} {name} stdout")).await,
            stderr: self.stream(stdio.stderr, format!("{id} {name} stderr")).await,
            terminal: self.stream(stdio.terminal, format!("{id} {name} terminal")).await,
            id: id.into(),
        }
    }

    /// Creates and starts a container of the shared image.
    pub(crate) async fn run(&self, args: &[&str], stdio: agent_api::agent::Stdio) -> Container {
        let container = self.create(self.request(&spec(args), shared(), stdio)).await;
        self.start(&container.id, "").await;
        container
    }

    pub(crate) async fn start(&self, id: &str, exec: &str) -> u32 {
        let started = self.client.start(ctx(), &process(id, exec)).await;
        started.unwrap_or_else(|error| panic!("{error}\n{}", self.console())).pid
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> WaitResponse {
        self.client.wait(ctx(), &process(id, exec)).await.unwrap()
    }

    pub(crate) async fn kill(&self, id: &str, signal: u32, all: bool) -> ttrpc::Result<Empty> {
        let process = Some(process(id, "")).into();
        self.client
            .signal(ctx(), &SignalRequest { process, signal, all, ..Default::default() })
            .await
    }

    /// Adds an exec and connects its streams.
    pub(crate) async fn exec(
        &self,
        id: &str,
        exec: &str,
        process_spec: &Value,
        stdio: agent_api::agent::Stdio,
    ) -> Container {
        let request = ExecRequest {
            process: Some(process(id, exec)).into(),
            spec: process_spec.to_string().into_bytes(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        self.client.exec(ctx(), &request).await.unwrap();
        self.connected(id, exec, &stdio).await
    }

    /// Runs a command in a container: its exit code and output.
    pub(crate) async fn sh(&self, id: &str, command: &str) -> (u32, String) {
        let exec = format!("e{}", self.next.fetch_add(1, Ordering::Relaxed));
        let process_spec = exec_spec(&["sh", "-c", command]);
        let mut streams = self.exec(id, &exec, &process_spec, outputs()).await;
        self.start(id, &exec).await;
        let mut text = read(&mut streams.stdout).await;
        text.push_str(&read(&mut streams.stderr).await);
        let status = self.wait(id, &exec).await.status;
        self.client.delete_exec(ctx(), &process(id, &exec)).await.unwrap();
        (status, text)
    }

    pub(crate) async fn delete(&self, id: &str) {
        let deleted = self.client.delete_container(ctx(), &container(id)).await;
        deleted.unwrap_or_else(|error| panic!("{error}\n{}", self.console()));
    }

    /// Kills a container and deletes it.
    pub(crate) async fn end(&self, id: &str) {
        let _ = self.kill(id, 9, true).await;
        self.wait(id, "").await;
        self.delete(id).await;
    }

    pub(crate) async fn shut_down(mut self) {
        let _ = self.client.shutdown(ctx(), &Empty::new()).await;
        self.powers_off().await;
    }

    /// Closes the connection that the agent serves on.
    pub(crate) async fn hang_up(mut self) {
        let (other, _) = UnixStream::pair().unwrap();
        self.client = AgentClient::new(Client::new(Socket::new(other)));
        self.powers_off().await;
    }

    async fn powers_off(&mut self) {
        for _ in 0..300 {
            if self.vm.try_wait().unwrap().is_some() {
                let console = self.console();
                assert!(!console.contains("panic"), "{console}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the VM does not power off:\n{}", self.console());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("console:\n{}", self.console());
        }
    }
}

pub(crate) fn exec_spec(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"]})
}

/// Reads to the stream's end.
pub(crate) async fn read(stream: &mut Option<UnixStream>) -> String {
    let mut bytes = Vec::new();
    let read = stream.as_mut().unwrap().read_to_end(&mut bytes);
    timeout(PATIENCE, read).await.expect("the stream does not end").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads a line, without its newline.
pub(crate) async fn line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(1, stream);
    timeout(PATIENCE, reader.read_line(&mut line)).await.expect("no line comes").unwrap();
    line.trim_end().to_owned()
}

/// Creates a busybox image.
fn image(root: &Path) {
    for dir in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = std::env::var("BUSYBOX").unwrap_or_else(|_| "/bin/busybox".into());
    std::fs::copy(&busybox, root.join("bin/busybox"))
        .unwrap_or_else(|error| panic!("{busybox} (busybox-static): {error}"));
    for applet in "cat dd echo env false grep head hostname id ip kill ls mkdir mount nc ps pwd sh sleep stat stty sync tail touch true tty wc yes mknod date seq".split(' ') {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}
