//! An agent that keeps its processes as mere numbers.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_api::agent::{self as api, ProcessRef};
use agent_api::agent_ttrpc::{Agent, create_agent};
use agent_api::{CONTROL_PORT, PROTOCOL};
use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// A process: its exit status once it has one.
type Process = watch::Sender<Option<u32>>;

/// The guest of every VM that a fake driver boots.
#[derive(Debug, Clone, Default)]
pub(super) struct Played(Arc<State>);

#[derive(Debug, Default)]
struct State {
    silent: AtomicBool,
    /// Whether it takes for ever to bring plugged-in processors online.
    stalls: AtomicBool,
    refuses_starts: AtomicBool,
    /// By container and exec.
    processes: Mutex<HashMap<(String, String), Process>>,
}

impl Played {
    /// Its agents never connect to the host from now on.
    pub(super) fn never_dials(&self) {
        self.0.silent.store(true, Ordering::Relaxed);
    }

    /// Its agents bring no plugged-in processor online from now on, and do not answer.
    pub(super) fn stalls(&self) {
        self.0.stalls.store(true, Ordering::Relaxed);
    }

    /// Its agents refuse to start a process from now on.
    pub(super) fn refuses_starts(&self) {
        self.0.refuses_starts.store(true, Ordering::Relaxed);
    }

    /// Whether it has a process, started or not.
    pub(super) fn knows(&self, container: &str, exec: &str) -> bool {
        self.processes().contains_key(&(container.to_owned(), exec.to_owned()))
    }

    /// A VM whose vsock is `vsock` has booted.
    pub(super) fn boots(&self, vsock: &Path) {
        if self.0.silent.load(Ordering::Relaxed) {
            return;
        }
        let mut control = vsock.as_os_str().to_owned();
        control.push(format!("_{CONTROL_PORT}"));
        let service = create_agent(Arc::new(self.clone()));
        tokio::spawn(async move {
            let host = UnixStream::connect(control).await.unwrap();
            let listener = Listener::new(futures::stream::iter([Ok::<_, io::Error>(host)]));
            let mut server = Server::new().add_listener(listener).register_service(service);
            server.start().await.unwrap();
            // For as long as the test runs.
            std::future::pending::<()>().await;
        });
    }

    /// A process exits by itself.
    pub(super) fn end(&self, container: &str, exec: &str, status: u32) {
        let key = (container.to_owned(), exec.to_owned());
        self.processes().get(&key).expect("a process that is to exit").send_replace(Some(status));
    }

    fn processes(&self) -> MutexGuard<'_, HashMap<(String, String), Process>> {
        self.0.processes.lock()
    }

    fn find(&self, process: &ProcessRef) -> ttrpc::Result<watch::Receiver<Option<u32>>> {
        let key = (process.container.clone(), process.exec.clone());
        let found = self.processes().get(&key).map(watch::Sender::subscribe);
        found.ok_or_else(|| refused(ttrpc::Code::NOT_FOUND, "no such process"))
    }
}

fn refused(code: ttrpc::Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.to_owned()))
}

#[async_trait]
impl Agent for Played {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        assert_eq!(request.protocol, PROTOCOL);
        Ok(api::ConfigureResponse { protocol: PROTOCOL, ..Default::default() })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let path = request.rootfs.path().to_owned();
        assert!(path.starts_with(agent_api::SHARE_MOUNT), "a path of the host: {path}");
        self.processes().insert((request.container, String::new()), Process::default());
        Ok(api::CreateContainerResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecRequest) -> ttrpc::Result<api::Empty> {
        let process = request.process.unwrap_or_default();
        let init = ProcessRef { container: process.container.clone(), ..Default::default() };
        if self.find(&init)?.borrow().is_some() {
            return Err(refused(ttrpc::Code::FAILED_PRECONDITION, "the container is not running"));
        }
        self.processes().insert((process.container, process.exec), Process::default());
        Ok(api::Empty::default())
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        process: ProcessRef,
    ) -> ttrpc::Result<api::StartResponse> {
        self.find(&process)?;
        if self.0.refuses_starts.load(Ordering::Relaxed) {
            return Err(refused(ttrpc::Code::INTERNAL, "no start"));
        }
        Ok(api::StartResponse { pid: 7, ..Default::default() })
    }

    async fn signal(
        &self,
        _: &TtrpcContext,
        request: api::SignalRequest,
    ) -> ttrpc::Result<api::Empty> {
        let process = request.process.clone().unwrap_or_default();
        if self.find(&process)?.borrow().is_some() {
            return Err(refused(ttrpc::Code::NOT_FOUND, "it has exited"));
        }
        if request.signal == 9 {
            let mut processes = self.processes();
            for ((container, exec), state) in processes.iter_mut() {
                if *container == process.container && (request.all || *exec == process.exec) {
                    state.send_replace(Some(137));
                }
            }
        }
        Ok(api::Empty::default())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        process: ProcessRef,
    ) -> ttrpc::Result<api::WaitResponse> {
        let mut state = self.find(&process)?;
        let ended = state.wait_for(Option::is_some).await.map(|status| status.unwrap_or(0));
        let status = ended.map_err(|_| refused(ttrpc::Code::NOT_FOUND, "it was deleted"))?;
        Ok(api::WaitResponse { status, ..Default::default() })
    }

    async fn delete_exec(&self, _: &TtrpcContext, exec: ProcessRef) -> ttrpc::Result<api::Empty> {
        self.processes().remove(&(exec.container, exec.exec));
        Ok(api::Empty::default())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        container: api::ContainerRef,
    ) -> ttrpc::Result<api::StatsResponse> {
        self.find(&ProcessRef { container: container.container, ..Default::default() })?;
        Ok(api::StatsResponse { cpu_total_ns: Some(1), ..Default::default() })
    }

    async fn online(
        &self,
        _: &TtrpcContext,
        _: api::OnlineRequest,
    ) -> ttrpc::Result<api::OnlineResponse> {
        if self.0.stalls.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(api::OnlineResponse::default())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.find(&ProcessRef { container: request.container, ..Default::default() })?;
        Ok(api::Empty::default())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        container: api::ContainerRef,
    ) -> ttrpc::Result<api::Empty> {
        self.processes().retain(|(id, _), _| *id != container.container);
        Ok(api::Empty::default())
    }
}
