//! The hooks of an OCI configuration that run in the runtime's namespaces: `prestart`,
//! `createRuntime`, `poststart` and `poststop` (config.md of the OCI runtime specification, "POSIX-
//! platform Hooks").

use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::command::Command;
use crate::error::{Classified, Error, Kind};
use crate::host::Host;
use crate::host_error::HostError;

/// How long a hook without a timeout may run: the specification has no limit, but a creation that
/// never returns cannot be cleaned up.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How many bytes of a hook's standard error an error shows.
const STDERR_TAIL: usize = 1024;

/// A hook that is wrong or failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The configuration is not as the specification requires.
    #[error("hooks.{place} in config.json: {reason}")]
    Invalid {
        /// The list it is in.
        place: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It exited with another status than 0.
    #[error("the {place} hook {path} exited with status {status}{stderr}")]
    Failed {
        /// The list it is in.
        place: &'static str,
        /// Its program.
        path: PathBuf,
        /// Its exit status.
        status: u32,
        /// The end of its standard error after a colon; empty if it wrote nothing.
        stderr: String,
    },
    /// It could not be started, or did not exit in time.
    #[error("the {place} hook {path}")]
    NotRun {
        /// The list it is in.
        place: &'static str,
        /// Its program.
        path: PathBuf,
        /// Cause.
        source: HostError,
    },
    /// The container's state could not be passed to it.
    #[error("writing the container's state for the {place} hook {path}")]
    State {
        /// The list it is in.
        place: &'static str,
        /// Its program.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

impl Classified for HookError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::Failed { .. } | Self::State { .. } => Kind::Internal,
            Self::NotRun { source, .. } => source.kind(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Hook {
    path: PathBuf,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    timeout: Option<i64>,
}

/// The hooks of one container that run in the runtime's namespaces.
#[derive(Debug, Clone)]
pub struct Hooks {
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
    /// The container's state without `status` and `pid`.
    state: Value,
}

impl Hooks {
    /// The hooks in `config`, the config.json of container `id` in the directory `bundle`.
    ///
    /// # Errors
    ///
    /// [`HookError::Invalid`] names the list and what is wrong in it.
    pub fn read(config: &Value, id: &str, bundle: &Path) -> Result<Self, HookError> {
        let mut state = json!({
            "ociVersion": config.get("ociVersion").cloned().unwrap_or_else(|| "1.0.2".into()),
            "id": id,
            "bundle": bundle,
        });
        if let Some(annotations) = config.get("annotations").filter(|found| found.is_object()) {
            state["annotations"] = annotations.clone();
        }
        Ok(Self {
            prestart: list(config, "prestart")?,
            create_runtime: list(config, "createRuntime")?,
            poststart: list(config, "poststart")?,
            poststop: list(config, "poststop")?,
            state,
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.has_create() && self.poststart.is_empty() && self.poststop.is_empty()
    }

    /// Whether any runs while the container is created.
    pub fn has_create(&self) -> bool {
        !self.prestart.is_empty() || !self.create_runtime.is_empty()
    }

    /// Runs `prestart`, then `createRuntime`. `pid` is in the container's network namespace.
    ///
    /// # Errors
    ///
    /// That of the first hook that fails; those after it do not run.
    pub async fn create(&self, host: &dyn Host, pid: u32) -> Result<(), HookError> {
        let state = self.state("creating", pid);
        let lists = [("prestart", &self.prestart), ("createRuntime", &self.create_runtime)];
        for (place, hooks) in lists {
            for hook in hooks {
                run(host, place, hook, &state).await?;
            }
        }
        Ok(())
    }

    /// Runs `poststart`. A failure is logged, as the specification requires.
    pub async fn started(&self, host: &dyn Host, pid: u32) {
        self.each(host, "poststart", &self.poststart, &self.state("running", pid)).await;
    }

    /// Runs `poststop`. A failure is logged, as the specification requires.
    pub async fn stopped(&self, host: &dyn Host) {
        self.each(host, "poststop", &self.poststop, &self.state("stopped", 0)).await;
    }

    async fn each(&self, host: &dyn Host, place: &'static str, hooks: &[Hook], state: &str) {
        for hook in hooks {
            if let Err(error) = run(host, place, hook, state).await {
                tracing::warn!(container = %self.state["id"], "{}", Error::from(error));
            }
        }
    }

    fn state(&self, status: &str, pid: u32) -> String {
        let mut state = self.state.clone();
        state["status"] = status.into();
        state["pid"] = pid.into();
        state.to_string()
    }
}

fn list(config: &Value, place: &'static str) -> Result<Vec<Hook>, HookError> {
    let invalid = |reason: String| HookError::Invalid { place, reason };
    let found = config.get("hooks").and_then(|hooks| hooks.get(place)).cloned();
    let hooks: Option<Vec<Hook>> = serde_json::from_value(found.unwrap_or_default())
        .map_err(|error| invalid(error.to_string()))?;
    let hooks = hooks.unwrap_or_default();
    for hook in &hooks {
        let path = hook.path.display();
        if !hook.path.is_absolute() {
            return Err(invalid(format!("path {path:?} is not absolute")));
        }
        if let Some(timeout) = hook.timeout.filter(|timeout| *timeout <= 0) {
            return Err(invalid(format!("timeout {timeout} of {path} is not greater than 0")));
        }
        let mut env = hook.env.iter().flatten();
        if let Some(entry) = env.find(|entry| !entry.contains('=')) {
            return Err(invalid(format!("env {entry:?} of {path} has no \"=\"")));
        }
    }
    Ok(hooks)
}

async fn run(
    host: &dyn Host,
    place: &'static str,
    hook: &Hook,
    state: &str,
) -> Result<(), HookError> {
    let path = || hook.path.clone();
    let stdin = file_of(state.as_bytes()).map_err(|source| HookError::State {
        place,
        path: path(),
        source,
    })?;
    let mut command = Command::new(&hook.path).in_own_mounts().stdin(stdin);
    if let Some((name, args)) = hook.args.as_deref().and_then(<[String]>::split_first) {
        command = command.arg0(name).args(args);
    }
    for (key, value) in hook.env.iter().flatten().filter_map(|entry| entry.split_once('=')) {
        command = command.env(key, value);
    }
    let seconds = hook.timeout.and_then(|timeout| u64::try_from(timeout).ok());
    let deadline = seconds.map_or(TIMEOUT, Duration::from_secs);
    let output = host.run(command, deadline).await.map_err(|source| HookError::NotRun {
        place,
        path: path(),
        source,
    })?;
    if output.success() {
        return Ok(());
    }
    let tail = &output.stderr[output.stderr.len().saturating_sub(STDERR_TAIL)..];
    let text = String::from_utf8_lossy(tail);
    let stderr = match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    };
    Err(HookError::Failed { place, path: path(), status: output.exit.status, stderr })
}

/// A file in memory with `content`, at its start: unlike a pipe it takes a state of any length from
/// a writer that does not wait for the reader.
fn file_of(content: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::RealHost;

    /// Hooks that are shell scripts: the list, the script, and what else the hook has.
    fn hooks(dir: &Path, scripts: &[(&str, &str, Value)]) -> Hooks {
        let mut config = json!({
            "ociVersion": "1.1.0", "annotations": {"a": "b"}, "hooks": {"createContainer": null},
        });
        for (place, script, more) in scripts {
            let mut hook = json!({
                "path": "/bin/sh",
                "args": ["named", "-c", script],
                "env": [format!("OUT={}", dir.join("out").display())],
            });
            for (key, value) in more.as_object().into_iter().flatten() {
                hook[key] = value.clone();
            }
            let list = &mut config["hooks"][*place];
            match list.as_array_mut() {
                Some(list) => list.push(hook),
                None => *list = json!([hook]),
            }
        }
        Hooks::read(&config, "c1", Path::new("/bundle")).unwrap()
    }

    #[tokio::test]
    async fn run_in_order_with_the_state_on_stdin() {
        let dir = tempfile::tempdir().unwrap();
        let host = RealHost::new().unwrap();
        let script = |name: &str| format!("(echo {name} $0 $N; cat; echo) >> $OUT");
        let none = json!({});
        let hooks = hooks(
            dir.path(),
            &[
                ("poststop", &script("poststop"), none.clone()),
                ("poststart", &script("poststart"), none.clone()),
                ("createRuntime", &script("create"), none.clone()),
                ("prestart", &script("pre1"), none.clone()),
                ("prestart", &script("pre2"), none),
            ],
        );
        hooks.create(&host, 42).await.unwrap();
        hooks.started(&host, 43).await;
        hooks.stopped(&host).await;
        let out = std::fs::read_to_string(dir.path().join("out")).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        let names: Vec<&str> = lines.iter().step_by(2).copied().collect();
        let expected = ["pre1", "pre2", "create", "poststart", "poststop"];
        assert_eq!(names, expected.map(|name| format!("{name} named")));
        let states = lines.iter().skip(1).step_by(2);
        let states: Vec<Value> = states.map(|line| serde_json::from_str(line).unwrap()).collect();
        let state = |status: &str, pid: u32| {
            json!({"ociVersion": "1.1.0", "id": "c1", "status": status, "pid": pid,
                   "bundle": "/bundle", "annotations": {"a": "b"}})
        };
        let creating = state("creating", 42);
        let running = state("running", 43);
        assert_eq!(
            states,
            [creating.clone(), creating.clone(), creating, running, state("stopped", 0)]
        );
    }

    #[tokio::test]
    async fn the_first_failure_ends_a_creation_and_not_the_hooks_after_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let host = RealHost::new().unwrap();
        let none = json!({});
        let hooks = hooks(
            dir.path(),
            &[
                ("prestart", "echo no address >&2; exit 3", none.clone()),
                ("createRuntime", "echo create >> $OUT", none.clone()),
                ("poststop", "exit 1", none.clone()),
                ("poststop", "echo stop >> $OUT", none),
            ],
        );
        let failed = hooks.create(&host, 1).await.unwrap_err();
        assert_eq!(
            failed.to_string(),
            "the prestart hook /bin/sh exited with status 3: no address"
        );
        hooks.stopped(&host).await;
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "stop\n");
    }

    #[tokio::test]
    async fn a_hook_is_killed_at_its_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let host = RealHost::new().unwrap();
        let hooks = hooks(dir.path(), &[("prestart", "exec sleep 100", json!({"timeout": 1}))]);
        let failed = Error::from(hooks.create(&host, 1).await.unwrap_err());
        assert_eq!(failed.kind(), Kind::DeadlineExceeded);
        let text = failed.to_string();
        assert!(text.ends_with("did not exit within 1 s and was killed"), "{text}");
    }

    #[test]
    fn wrong_hooks_are_refused() {
        for (hook, reason) in [
            (json!({"path": "sh"}), "path \"sh\" is not absolute"),
            (json!({"path": "/a", "timeout": 0}), "timeout 0 of /a is not greater than 0"),
            (json!({"path": "/a", "env": ["B"]}), "env \"B\" of /a has no \"=\""),
        ] {
            let config = json!({"hooks": {"poststop": [hook]}});
            let refused = Hooks::read(&config, "c1", Path::new("/b")).unwrap_err();
            assert_eq!(refused.to_string(), format!("hooks.poststop in config.json: {reason}"));
            assert_eq!(refused.kind(), Kind::InvalidArgument);
        }
    }
}
