//! A process added to a running container.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use oci_spec::runtime::{LinuxCapabilities, Process as ProcessSpec};
use sandbox_core::exit::ExitCell;
use sandbox_core::host::Host;
use sandbox_core::stdio::{self, Owner, Streams};
use sandbox_core::{ExecProcess, Exit, Process, Result, StdioPaths};
use tokio::task::JoinHandle;

use crate::capability;
use crate::control::{Capabilities, ExecArgs, Target};
use crate::error::GvisorError;
use crate::init::{Init, forward_typed, tell_size, told};
use crate::pod::Pod;

/// The container an exec belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) pod: Arc<Pod>,
    pub(crate) init: Arc<Init>,
    pub(crate) owner: Owner,
    pub(crate) host: Arc<dyn Host>,
}

#[derive(Debug)]
enum State {
    Created,
    Starting,
    Running { pid: i32, streams: Arc<Streams>, following: JoinHandle<()> },
}

/// An exec.
#[derive(Debug)]
pub(crate) struct Exec {
    id: String,
    home: Home,
    args: ExecArgs,
    paths: StdioPaths,
    size: Mutex<Option<(u16, u16)>>,
    state: Mutex<State>,
    exit: ExitCell,
}

impl Drop for Exec {
    fn drop(&mut self) {
        if let State::Running { following, .. } = &*self.state() {
            following.abort();
        }
    }
}

/// What an exec is given by its container where its own configuration says nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) capabilities: Capabilities,
}

impl Defaults {
    /// Those of a container whose first process is `spec`.
    pub(crate) fn of(spec: &ProcessSpec, net_raw: bool) -> Self {
        Self {
            env: spec.env().clone().unwrap_or_default(),
            cwd: spec.cwd().to_string_lossy().into_owned(),
            capabilities: masks(spec.capabilities().as_ref(), net_raw).unwrap_or_default(),
        }
    }
}

fn masks(given: Option<&LinuxCapabilities>, net_raw: bool) -> Option<Capabilities> {
    given.map(|sets| capability::masks(sets, net_raw))
}

/// What gVisor is asked to run for `spec` in container `cid`.
pub(crate) fn arguments(
    spec: &ProcessSpec,
    cid: &str,
    terminal: bool,
    defaults: &Defaults,
    net_raw: bool,
) -> Result<ExecArgs, GvisorError> {
    let argv = spec.args().clone().filter(|args| !args.is_empty()).ok_or(GvisorError::NoArgs)?;
    let cwd = match spec.cwd().to_string_lossy() {
        empty if empty.is_empty() => defaults.cwd.clone(),
        given if !given.starts_with('/') => return Err(GvisorError::Cwd(given.into_owned())),
        given => given.into_owned(),
    };
    let user = spec.user();
    let own = masks(spec.capabilities().as_ref(), net_raw);
    Ok(ExecArgs {
        argv,
        envv: spec.env().clone().unwrap_or_else(|| defaults.env.clone()),
        cwd,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        capabilities: own.unwrap_or(defaults.capabilities),
        no_new_privileges: spec.no_new_privileges().unwrap_or(false),
        terminal,
        guest_fds: [0, 1, 2],
        cid: cid.to_owned(),
    })
}

impl Exec {
    /// Prepares `request`, which is to run `args`.
    pub(crate) fn new(request: ExecProcess, home: Home, args: ExecArgs) -> Self {
        let cells = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let size = request.spec.console_size().map(|b| (cells(b.width()), cells(b.height())));
        Self {
            id: request.id.to_string(),
            home,
            args,
            paths: request.stdio,
            size: Mutex::new(size.filter(|(w, h)| *w > 0 && *h > 0)),
            state: Mutex::new(State::Created),
            exit: ExitCell::new(),
        }
    }

    /// Its name for the client.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The sandbox's number for it, while it runs.
    pub(crate) fn guest_pid(&self) -> Option<i32> {
        match &*self.state() {
            State::Running { pid, .. } if self.exit.get().is_none() => Some(*pid),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No change of state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn what(&self) -> String {
        format!("exec {} of container {}", self.id, self.args.cid)
    }

    /// The streams and the sandbox's number of the running process.
    fn running(&self) -> Result<(i32, Arc<Streams>), GvisorError> {
        if self.exit.get().is_some() {
            return Err(GvisorError::Ended { what: self.what() });
        }
        match &*self.state() {
            State::Running { pid, streams, .. } => Ok((*pid, Arc::clone(streams))),
            State::Created | State::Starting => Err(GvisorError::NotStarted { what: self.what() }),
        }
    }

    async fn run(&self) -> Result<State, GvisorError> {
        self.home.init.check_runs()?;
        self.home.pod.check_runs()?;
        let Home { owner, host, pod, .. } = &self.home;
        let (pid, streams) = if self.args.terminal {
            let (slave, streams) = stdio::open_terminal(&self.paths, owner, &**host).await?;
            let size = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((width, height)) = size {
                streams.resize(width, height)?;
            }
            (pod.control.execute(&self.args, [slave.as_fd(); 3]).await?, streams)
        } else {
            let (fds, streams) = stdio::open(&self.paths, owner, &**host).await?;
            let stdio = [fds.stdin.as_fd(), fds.stdout.as_fd(), fds.stderr.as_fd()];
            (pod.control.execute(&self.args, stdio).await?, streams)
        };
        forward_typed(&streams, &pod.control, &self.args.cid, pid);
        let streams = Arc::new(streams);
        let following = tokio::spawn({
            let (control, ended) = (pod.control.clone(), pod.ended.clone());
            let (streams, exit) = (Arc::clone(&streams), self.exit.clone());
            let cid = self.args.cid.clone();
            async move {
                let end = tokio::select! {
                    biased;
                    exit = told(|| control.wait_pid(cid.clone(), pid)) => exit,
                    _ = ended.wait() => Exit::now(Exit::KILLED),
                };
                streams.finish().await;
                exit.set(end);
            }
        });
        Ok(State::Running { pid, streams, following })
    }
}

#[async_trait]
impl Process for Exec {
    fn pid(&self) -> u32 {
        self.home.pod.process.pid
    }

    async fn start(&self) -> Result<()> {
        {
            let mut state = self.state();
            if !matches!(*state, State::Created) {
                return Err(GvisorError::Started { what: self.what() }.into());
            }
            *state = State::Starting;
        }
        let (state, result) = match self.run().await {
            Ok(running) => (running, Ok(())),
            Err(error) => (State::Created, Err(error.into())),
        };
        *self.state() = state;
        result
    }

    async fn signal(&self, signal: i32, _all: bool) -> Result<()> {
        let (pid, _) = self.running()?;
        let target = Target::Process(pid);
        Ok(self.home.pod.control.signal(&self.args.cid, signal, target).await?)
    }

    async fn wait(&self) -> Exit {
        self.exit.wait().await
    }

    async fn resize(&self, width: u16, height: u16) -> Result<()> {
        match self.running() {
            Ok((pid, streams)) => {
                streams.resize(width, height).map_err(GvisorError::from)?;
                tell_size(&self.home.pod.control, &self.args.cid, pid).await;
            }
            // It is set when the terminal is made.
            Err(GvisorError::NotStarted { .. }) => {
                let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
                *size = Some((width, height));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn close_stdin(&self) -> Result<()> {
        match self.running() {
            Ok((_, streams)) => streams.close_stdin(),
            // It ended: there is nobody left to read.
            Err(GvisorError::Ended { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: serde_json::Value) -> ProcessSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_is_not_said_comes_from_the_container() {
        let container = process(serde_json::json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/srv", "args": ["x"], "env": ["PATH=/bin"],
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NET_RAW"]},
        }));
        let defaults = Defaults::of(&container, false);
        let bare = process(serde_json::json!({
            "user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "cwd": "", "args": ["id"],
        }));
        let args = arguments(&bare, "c", true, &defaults, false).unwrap();
        assert_eq!((args.cwd.as_str(), &args.envv), ("/srv", &vec!["PATH=/bin".to_owned()]));
        assert_eq!((args.uid, args.gid, args.groups), (7, 8, vec![9]));
        assert_eq!(args.capabilities.bounding, 1);
        assert!(args.terminal);
        let own = process(serde_json::json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["id"], "env": [],
            "capabilities": {"bounding": ["CAP_NET_RAW"]}, "noNewPrivileges": true,
        }));
        let args = arguments(&own, "c", false, &defaults, true).unwrap();
        assert_eq!((args.envv.len(), args.capabilities.bounding), (0, 1 << 13));
        assert!(args.no_new_privileges);
    }

    #[test]
    fn faults_are_named() {
        let none = process(serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"}));
        let error = arguments(&none, "c", false, &Defaults::default(), false).unwrap_err();
        assert_eq!(error.to_string(), "process.args is empty; there is nothing to run");
        let relative =
            process(serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "x", "args": ["a"]}));
        let error = arguments(&relative, "c", false, &Defaults::default(), false).unwrap_err();
        assert_eq!(error.to_string(), "process.cwd \"x\" is not an absolute path");
    }
}
