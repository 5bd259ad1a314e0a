//! The sandbox's control server: the calls that a shim makes, with gVisor's own argument names
//! (`runsc/boot/controller.go`, `pkg/sentry/control/proc.go`; the same from 20240729 on).

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_host::{Classified, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::capability::Capabilities;
use crate::event::Event;
use crate::id::RunscId;
use crate::message;
use crate::urpc::{Connection, UrpcError};

/// A client of a sandbox's control server; it connects for each call.
#[derive(Debug, Clone)]
pub struct Control {
    socket: PathBuf,
    deadline: Duration,
}

/// What a signal is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The container's first process.
    Init,
    /// One process, by the sandbox's number for it.
    Process(i32),
    /// Every process of the container.
    All,
    /// The foreground process group of the terminal of the first process (0) or of an exec.
    Foreground(i32),
}

#[derive(Serialize)]
struct SignalArgs<'a> {
    #[serde(rename = "CID")]
    cid: &'a str,
    #[serde(rename = "Signo")]
    signo: i32,
    #[serde(rename = "PID")]
    pid: i32,
    #[serde(rename = "Mode")]
    mode: u8,
}

#[derive(Serialize)]
struct PortForwardArgs<'a> {
    #[serde(rename = "ContainerID")]
    cid: &'a str,
    #[serde(rename = "Port")]
    port: u16,
}

#[derive(Serialize)]
struct WaitPidArgs<'a> {
    #[serde(rename = "PID")]
    pid: i32,
    #[serde(rename = "CID")]
    cid: &'a str,
}

/// A process to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExecArgs {
    /// The program, looked up in the container's `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// The environment, as `NAME=value`.
    pub envv: Vec<String>,
    /// The working directory.
    #[serde(rename = "wd")]
    pub cwd: String,
    /// The user.
    #[serde(rename = "KUID")]
    pub uid: u32,
    /// The group.
    #[serde(rename = "KGID")]
    pub gid: u32,
    /// Supplementary groups.
    #[serde(rename = "ExtraKGIDs")]
    pub groups: Vec<u32>,
    /// Its capabilities.
    #[serde(rename = "Capabilities")]
    pub capabilities: Capabilities,
    /// Whether it can gain no privileges by running a program. Unknown to 20240729, which ignores
    /// it.
    #[serde(rename = "NoNewPrivileges")]
    pub no_new_privileges: bool,
    /// Whether its descriptors are a terminal.
    #[serde(rename = "StdioIsPty")]
    pub terminal: bool,
    /// The guest's numbers for the descriptors that go along.
    #[serde(rename = "GuestFDs")]
    pub guest_fds: [i32; 3],
    /// The container to run in.
    #[serde(rename = "ContainerID")]
    pub cid: RunscId,
}

impl Classified for UrpcError {
    fn kind(&self) -> Kind {
        match self {
            Self::Connect { .. } | Self::Io { .. } | Self::Closed { .. } => Kind::Unavailable,
            Self::Answer { .. } | Self::TooLong { .. } => Kind::Internal,
            Self::Remote { message, .. } => message::kind(message),
            Self::Deadline { .. } => Kind::DeadlineExceeded,
        }
    }
}

impl Control {
    /// A client for the control socket at `socket`; every call but the waits must be answered
    /// within `deadline`.
    pub fn new(socket: PathBuf, deadline: Duration) -> Self {
        Self { socket, deadline }
    }

    /// What container `cid` uses.
    pub async fn event(&self, cid: &str) -> Result<Event, UrpcError> {
        Ok(self.ask("containerManager.Event", &cid, &[]).await?.unwrap_or_default())
    }

    /// Sends `signo`.
    pub async fn signal(&self, cid: &str, signo: i32, target: Target) -> Result<(), UrpcError> {
        let (pid, mode) = match target {
            Target::Init => (0, 0),
            Target::Process(pid) => (pid, 0),
            Target::All => (0, 1),
            Target::Foreground(pid) => (pid, 2),
        };
        self.order("containerManager.Signal", &SignalArgs { cid, signo, pid, mode }).await
    }

    /// Removes container `cid` from the sandbox and kills its processes.
    pub async fn destroy(&self, cid: &str) -> Result<(), UrpcError> {
        self.order("containerManager.DestroySubcontainer", &cid).await
    }

    /// Freezes every container of the sandbox.
    pub async fn pause(&self) -> Result<(), UrpcError> {
        self.order("containerManager.Pause", &()).await
    }

    /// Undoes [`Self::pause`].
    pub async fn resume(&self) -> Result<(), UrpcError> {
        self.order("containerManager.Resume", &()).await
    }

    /// Runs a process with `stdio` as its descriptors 0 to 2; the answer is the sandbox's number
    /// for it.
    pub async fn execute(
        &self,
        args: &ExecArgs,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<i32, UrpcError> {
        let method = "containerManager.ExecuteAsync";
        let pid = self.ask(method, args, &stdio).await?;
        pid.ok_or(UrpcError::Closed { method })
    }

    /// Connects `stream` to `port` of the sandbox's loopback; container `cid` must run.
    pub async fn port_forward(
        &self,
        cid: &str,
        port: u16,
        stream: BorrowedFd<'_>,
    ) -> Result<(), UrpcError> {
        let args = PortForwardArgs { cid, port };
        let method = "containerManager.PortForward";
        self.ask::<_, serde_json::Value>(method, &args, &[stream]).await.map(drop)
    }

    /// Starts to wait for container `cid`'s first process. The returned future resolves to its
    /// wait status word; it fails when the sandbox exits first.
    pub async fn wait(
        &self,
        cid: String,
    ) -> Result<impl Future<Output = Result<i32, UrpcError>> + Send + 'static, UrpcError> {
        let mut connection = self.connect("containerManager.Wait").await?;
        Ok(async move {
            let method = "containerManager.Wait";
            let status = connection.call::<_, u32>(method, &cid, &[]).await?;
            word(method, status)
        })
    }

    /// As [`Self::wait`] for the process that [`Self::execute`] made.
    pub async fn wait_pid(
        &self,
        cid: String,
        pid: i32,
    ) -> Result<impl Future<Output = Result<i32, UrpcError>> + Send + 'static, UrpcError> {
        let mut connection = self.connect("containerManager.WaitPID").await?;
        Ok(async move {
            let method = "containerManager.WaitPID";
            let args = WaitPidArgs { pid, cid: &cid };
            let status = connection.call::<_, u32>(method, &args, &[]).await?;
            word(method, status)
        })
    }

    async fn connect(&self, method: &'static str) -> Result<Connection, UrpcError> {
        let opened = tokio::time::timeout(self.deadline, Connection::open(&self.socket)).await;
        opened.unwrap_or(Err(UrpcError::Deadline { method, after: self.deadline }))
    }

    async fn ask<A: Serialize, R: DeserializeOwned>(
        &self,
        method: &'static str,
        arg: &A,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<R>, UrpcError> {
        let call = async {
            let mut connection = Connection::open(&self.socket).await?;
            connection.call(method, arg, fds).await
        };
        let answered = tokio::time::timeout(self.deadline, call).await;
        answered.unwrap_or(Err(UrpcError::Deadline { method, after: self.deadline }))
    }

    async fn order<A: Serialize>(&self, method: &'static str, arg: &A) -> Result<(), UrpcError> {
        self.ask::<A, serde_json::Value>(method, arg, &[]).await.map(drop)
    }
}

/// A wait status, which the sandbox sends as an unsigned number.
fn word(method: &'static str, status: Option<u32>) -> Result<i32, UrpcError> {
    status.and_then(|s| i32::try_from(s).ok()).ok_or(UrpcError::Closed { method })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_an_exec_as_gvisor_reads_it() {
        let args = ExecArgs {
            argv: vec!["id".into()],
            envv: vec!["PATH=/bin".into()],
            cwd: "/tmp".into(),
            uid: 1000,
            gid: 5,
            groups: vec![6],
            capabilities: Capabilities { bounding: 1 << 63, ..Capabilities::default() },
            no_new_privileges: true,
            terminal: false,
            guest_fds: [0, 1, 2],
            cid: RunscId::new("c"),
        };
        assert_eq!(
            serde_json::to_string(&args).unwrap(),
            concat!(
                r#"{"argv":["id"],"envv":["PATH=/bin"],"wd":"/tmp","KUID":1000,"KGID":5,"#,
                r#""ExtraKGIDs":[6],"Capabilities":{"PermittedCaps":0,"InheritableCaps":0,"#,
                r#""EffectiveCaps":0,"BoundingCaps":9223372036854775808,"AmbientCaps":0},"#,
                r#""NoNewPrivileges":true,"StdioIsPty":false,"GuestFDs":[0,1,2],"#,
                r#""ContainerID":"c+"}"#
            )
        );
    }
}
