//! The host's side of the agent's protocol: every call has a deadline, and no answer of the guest
//! is trusted.

mod answer;
mod configuration;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_api::agent::{
    ContainerRef, ExecRequest, OnlineRequest, ProcessRef, ResizeRequest, SignalRequest,
    UpdateRequest,
};
use agent_api::agent_ttrpc::AgentClient;
use agent_api::{PROTOCOL, STREAM_PORT};
use sandbox_core::{Ended, Exit, Stats, StdioPaths, TerminalSize};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;
use vm_volumes::ContainerPlan;

pub(crate) use self::answer::GuestError;
use self::answer::classify;
pub(crate) use self::configuration::Configuration;
use crate::dial::dial;

/// A process of the guest by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) container: String,
    /// `None` for a container's first process.
    pub(crate) exec: Option<String>,
}

impl Key {
    fn message(&self) -> ProcessRef {
        ProcessRef {
            container: self.container.clone(),
            exec: self.exec.clone().unwrap_or_default(),
            ..ProcessRef::default()
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.exec {
            None => write!(f, "container {}", self.container),
            Some(exec) => write!(f, "exec {exec} of container {}", self.container),
        }
    }
}

/// A guest whose agent has connected to the host.
pub(crate) struct Guest {
    client: AgentClient,
    vsock: PathBuf,
    call: Duration,
    create: Duration,
    /// Nanoseconds.
    waited: AtomicU64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("vsock", &self.vsock).finish_non_exhaustive()
    }
}

impl Guest {
    /// The guest at the other end of `control`, whose ports are reached through `vsock`.
    pub(crate) fn new(control: UnixStream, vsock: &Path, call: Duration, create: Duration) -> Self {
        let client = AgentClient::new(ttrpc::r#async::Client::new(Socket::new(control)));
        Self { client, vsock: vsock.to_owned(), call, create, waited: AtomicU64::new(0) }
    }

    /// How long the host has waited for the guest's answers, summed over all callers; waits for
    /// processes' exits do not count.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    async fn awaited<T>(&self, answer: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let answer = answer.await;
        let waited = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(waited, Ordering::Relaxed);
        answer
    }

    /// Bounds a call in time and classifies its error.
    async fn ask<T>(
        &self,
        verb: &'static str,
        limit: Duration,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, GuestError> {
        match self.awaited(tokio::time::timeout(limit, call)).await {
            Ok(answer) => answer.map_err(|error| classify(verb, error)),
            Err(_) => Err(GuestError::Deadline { verb, seconds: limit.as_secs() }),
        }
    }

    /// The first call: versions, clock, network, shares. Returns how long after its kernel the
    /// agent started, by the guest's clock.
    pub(crate) async fn configure(
        &self,
        configuration: &Configuration<'_>,
        deadline: Duration,
    ) -> Result<Duration, GuestError> {
        let mut request = wire::configure(configuration);
        request.protocol = PROTOCOL;
        request.clock_ns = now_ns();
        let call = self.client.configure(Context::default(), &request);
        let answer = self.ask("configure itself", deadline, call).await?;
        match answer.protocol {
            PROTOCOL => Ok(Duration::from_nanos(answer.agent_started_ns)),
            theirs => Err(GuestError::Protocol { theirs }),
        }
    }

    /// Has the guest make container `id` as `plan` says.
    pub(crate) async fn create(
        &self,
        id: &str,
        plan: ContainerPlan,
        stdio: &StdioPaths,
    ) -> Result<(), GuestError> {
        let request = wire::create_container(id, plan, stdio);
        let call = self.client.create_container(Context::default(), &request);
        self.ask("create the container", self.create, call).await.map(drop)
    }

    pub(crate) async fn exec(
        &self,
        key: &Key,
        spec: Vec<u8>,
        stdio: &StdioPaths,
    ) -> Result<(), GuestError> {
        let request = ExecRequest {
            process: Some(key.message()).into(),
            spec,
            stdio: Some(wire::stdio(stdio)).into(),
            ..ExecRequest::default()
        };
        let call = self.client.exec(Context::default(), &request);
        self.ask("add the process", self.call, call).await.map(drop)
    }

    /// Connects a stream (`stdin`, `stdout`, `stderr`, `terminal`) of a process.
    pub(crate) async fn stream(&self, key: &Key, name: &str) -> Result<UnixStream, GuestError> {
        let exec = key.exec.as_deref().unwrap_or("-");
        let header = format!("{} {exec} {name}", key.container);
        Ok(self.awaited(dial(&self.vsock, STREAM_PORT, &header, self.call)).await?)
    }

    /// Runs a process.
    pub(crate) async fn start(&self, key: &Key) -> Result<(), GuestError> {
        let request = key.message();
        let call = self.client.start(Context::default(), &request);
        self.ask("start the process", self.create, call).await.map(drop)
    }

    pub(crate) async fn signal(&self, key: &Key, signal: i32, all: bool) -> Result<(), GuestError> {
        let request = SignalRequest {
            process: Some(key.message()).into(),
            signal: signal.unsigned_abs(),
            all,
            ..SignalRequest::default()
        };
        let call = self.client.signal(Context::default(), &request);
        self.ask("signal the process", self.call, call).await.map(drop)
    }

    /// Waits for a process's exit, without a deadline: the caller watches the VM.
    pub(crate) async fn wait(&self, key: &Key) -> Result<Ended, GuestError> {
        let answer = self.client.wait(Context::default(), &key.message()).await;
        let answer = answer.map_err(|error| classify("wait for the process", error))?;
        // By the host's clock: the guest's is not trusted.
        let exit = Exit::now(answer.status.min(255));
        Ok(Ended { exit, oom_killed: answer.oom_killed })
    }

    pub(crate) async fn resize(&self, key: &Key, size: TerminalSize) -> Result<(), GuestError> {
        let request = ResizeRequest {
            process: Some(key.message()).into(),
            width: size.width.into(),
            height: size.height.into(),
            ..ResizeRequest::default()
        };
        let call = self.client.resize(Context::default(), &request);
        self.ask("resize the terminal", self.call, call).await.map(drop)
    }

    pub(crate) async fn delete_exec(&self, key: &Key) -> Result<(), GuestError> {
        let request = key.message();
        let call = self.client.delete_exec(Context::default(), &request);
        self.ask("remove the process", self.call, call).await.map(drop)
    }

    pub(crate) async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), GuestError> {
        let container = id.to_owned();
        let request = UpdateRequest { container, resources, ..UpdateRequest::default() };
        let call = self.client.update(Context::default(), &request);
        self.ask("change the limits", self.call, call).await.map(drop)
    }

    pub(crate) async fn stats(&self, id: &str) -> Result<Stats, GuestError> {
        let request = container(id);
        let call = self.client.stats(Context::default(), &request);
        self.ask("report the container's resource usage", self.call, call).await.map(answer::stats)
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<(), GuestError> {
        let request = container(id);
        let call = self.client.pause(Context::default(), &request);
        self.ask("freeze the container", self.call, call).await.map(drop)
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<(), GuestError> {
        let request = container(id);
        let call = self.client.resume(Context::default(), &request);
        self.ask("thaw the container", self.call, call).await.map(drop)
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), GuestError> {
        let request = container(id);
        let call = self.client.delete_container(Context::default(), &request);
        self.ask("remove the container", self.call, call).await.map(drop)
    }

    /// Brings plugged-in processors and memory online.
    pub(crate) async fn online(&self, vcpus: u32) -> Result<(), GuestError> {
        let request = OnlineRequest { vcpus, ..OnlineRequest::default() };
        let call = self.client.online(Context::default(), &request);
        self.ask("bring plugged-in processors and memory online", self.call, call).await.map(drop)
    }
}

fn container(id: &str) -> ContainerRef {
    ContainerRef { container: id.to_owned(), ..ContainerRef::default() }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
