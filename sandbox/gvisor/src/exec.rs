//! A process to add to a running container.

use std::os::fd::AsFd;
use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::runtime::{LinuxCapabilities, Process as ProcessSpec};
use runsc::{Capabilities, ExecArgs, RunscId};
use sandbox_core::stdio::{self, Owner, Streams};
use sandbox_core::{Early, Prepared, Result, Running, StdioPaths, TerminalSize};

use crate::error::GvisorError;
use crate::pod::Pod;
use crate::process::{Part, StartedProcess};
use crate::runtime::Runtime;

/// An exec that was not started.
#[derive(Debug)]
pub(crate) struct PreparedExec {
    pub(crate) args: ExecArgs,
    pub(crate) paths: StdioPaths,
    /// The size that its configuration has for its terminal.
    pub(crate) size: Option<TerminalSize>,
    pub(crate) owner: Owner,
    pub(crate) pod: Arc<Pod>,
    pub(crate) runtime: Arc<Runtime>,
}

/// What an exec inherits from its container where its own configuration has nothing.
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
    given.map(|sets| Capabilities::of(sets, net_raw))
}

/// What gVisor is asked to run for `spec` in container `cid`.
pub(crate) fn arguments(
    spec: &ProcessSpec,
    cid: &RunscId,
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
        cid: cid.clone(),
    })
}

/// The terminal's size that `spec` has, if any.
pub(crate) fn console_size(spec: &ProcessSpec) -> Option<TerminalSize> {
    let size = spec.console_size()?;
    let cells = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    let size = TerminalSize { width: cells(size.width()), height: cells(size.height()) };
    (size.width > 0 && size.height > 0).then_some(size)
}

impl PreparedExec {
    /// Runs it; returns the sandbox's process id.
    async fn run(&self, early: Early) -> Result<(i32, Streams), GvisorError> {
        self.pod.check_runs()?;
        let host = &*self.runtime.host;
        let control = &self.pod.control;
        if self.args.terminal {
            let (slave, streams) = stdio::open_terminal(&self.paths, &self.owner, host).await?;
            if let Some(size) = early.size.or(self.size) {
                streams.resize(size.width, size.height)?;
            }
            let pid = control.execute(&self.args, [slave.as_fd(); 3]).await?;
            return Ok((pid, streams));
        }
        let (fds, streams) = stdio::open(&self.paths, &self.owner, host).await?;
        let stdio = [fds.stdin.as_fd(), fds.stdout.as_fd(), fds.stderr.as_fd()];
        let pid = control.execute(&self.args, stdio).await?;
        Ok((pid, streams))
    }
}

#[async_trait]
impl Prepared for PreparedExec {
    async fn start(self: Box<Self>, early: Early) -> Result<Arc<dyn Running>> {
        let (pid, streams) = self.run(early).await?;
        if early.stdin_closed {
            // The process has the reading end, and with it what was written before.
            streams.close_stdin();
        }
        let Self { args, pod, .. } = *self;
        let part = Part::Exec(pid);
        Ok(StartedProcess::follow(pod, args.cid, part, Arc::new(streams)))
    }

    /// Nothing of an exec exists before its start.
    async fn abandon(self: Box<Self>) {}
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
        let args = arguments(&bare, &RunscId::new("c"), true, &defaults, false).unwrap();
        assert_eq!((args.cwd.as_str(), &args.envv), ("/srv", &vec!["PATH=/bin".to_owned()]));
        assert_eq!((args.uid, args.gid, args.groups), (7, 8, vec![9]));
        assert_eq!(args.capabilities.bounding, 1);
        assert!(args.terminal);
        let own = process(serde_json::json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["id"], "env": [],
            "capabilities": {"bounding": ["CAP_NET_RAW"]}, "noNewPrivileges": true,
        }));
        let args = arguments(&own, &RunscId::new("c"), false, &defaults, true).unwrap();
        assert_eq!((args.envv.len(), args.capabilities.bounding), (0, 1 << 13));
        assert!(args.no_new_privileges);
    }

    #[test]
    fn faults_are_named() {
        let none = process(serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"}));
        let error =
            arguments(&none, &RunscId::new("c"), false, &Defaults::default(), false).unwrap_err();
        assert_eq!(error.to_string(), "process.args is empty; there is nothing to run");
        let relative =
            process(serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "x", "args": ["a"]}));
        let error = arguments(&relative, &RunscId::new("c"), false, &Defaults::default(), false)
            .unwrap_err();
        assert_eq!(error.to_string(), "process.cwd \"x\" is not an absolute path");
    }
}
