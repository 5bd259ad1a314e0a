//! Pods and their containers through CRI; they are removed when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_cri::v1 as api;

use super::stage::Stage;
use crate::bed::image;
use crate::bed::process::until;

/// How long a container may take to reach a state.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Pod that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    stage: &'a Stage,
    /// CRI's id.
    pub(crate) id: String,
    /// Its configuration.
    pub(crate) config: api::PodSandboxConfig,
    cgroup: String,
}

/// A plain Pod's configuration.
pub(crate) fn pod_config(stage: &Stage) -> Result<api::PodSandboxConfig> {
    let name = stage.unique();
    let logs = stage.node.lib().join("logs").join(&name);
    fs::create_dir_all(&logs)?;
    Ok(api::PodSandboxConfig {
        metadata: Some(api::PodSandboxMetadata {
            name: name.clone(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: "bed-pod".to_owned(),
        log_directory: logs.display().to_string(),
        dns_config: Some(api::DnsConfig {
            servers: vec!["192.0.2.53".to_owned()],
            searches: vec!["bed.test".to_owned()],
            options: Vec::new(),
        }),
        linux: Some(api::LinuxPodSandboxConfig {
            cgroup_parent: stage.make_cgroup(&name)?,
            security_context: Some(api::LinuxSandboxSecurityContext {
                namespace_options: Some(own_pid_namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// What kubelet sends by default: each container has its own PID namespace.
fn own_pid_namespaces() -> api::NamespaceOption {
    api::NamespaceOption { pid: api::NamespaceMode::Container.into(), ..Default::default() }
}

/// A container's configuration that runs `script` in a shell.
pub(crate) fn shell(script: &str) -> api::ContainerConfig {
    command(&["sh", "-c", script])
}

/// A container's configuration that runs `words`.
pub(crate) fn command(words: &[&str]) -> api::ContainerConfig {
    api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(api::ImageSpec { image: image::BUSYBOX.to_owned(), ..Default::default() }),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        linux: Some(api::LinuxContainerConfig {
            resources: Some(api::LinuxContainerResources::default()),
            security_context: Some(api::LinuxContainerSecurityContext {
                namespace_options: Some(own_pid_namespaces()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The security context of `config`.
pub(crate) fn security(
    config: &mut api::ContainerConfig,
) -> &mut api::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The resources of `config`.
pub(crate) fn resources(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A bind of `host` at `container`.
pub(crate) fn bind(host: &Path, container: &str, readonly: bool) -> api::Mount {
    api::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    }
}

impl<'a> Pod<'a> {
    /// Runs a plain Pod under the stage's handler.
    pub(crate) fn run(stage: &'a Stage) -> Result<Self> {
        Self::run_config(stage, pod_config(stage)?)
    }

    /// Runs `config` under the stage's handler.
    pub(crate) fn run_config(stage: &'a Stage, config: api::PodSandboxConfig) -> Result<Self> {
        Self::run_handler(stage, config, stage.handler.name())
    }

    /// Runs `config` under any handler.
    pub(crate) fn run_handler(
        stage: &'a Stage,
        config: api::PodSandboxConfig,
        handler: &str,
    ) -> Result<Self> {
        let cgroup = config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
        match stage.cri.run_pod(&config, handler) {
            Ok(id) => {
                stage.node.expect_shim("k8s.io", &id);
                Ok(Self { stage, id, config, cgroup })
            }
            Err(e) => {
                stage.drop_cgroup(&cgroup);
                Err(e)
            }
        }
    }

    /// Creates and starts `config` as the container `name` of this Pod.
    pub(crate) fn start(
        &self,
        name: &str,
        mut config: api::ContainerConfig,
    ) -> Result<Container<'a>> {
        config.metadata = Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 });
        let container = self.create(config)?;
        self.stage.cri.start(&container.id)?;
        Ok(container)
    }

    /// Starts a container that runs `script`.
    pub(crate) fn shell(&self, script: &str) -> Result<Container<'a>> {
        self.start("main", shell(script))
    }

    /// Creates `config` without starting it.
    pub(crate) fn create(&self, mut config: api::ContainerConfig) -> Result<Container<'a>> {
        let metadata = config.metadata.clone().unwrap_or_default();
        config.log_path = format!("{}-{}.log", metadata.name, metadata.attempt);
        let id = self.stage.cri.create(&self.id, &self.config, &config)?;
        self.stage.node.expect_shim("k8s.io", &id);
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        Ok(Container { stage: self.stage, id, log })
    }

    /// The address by CNI.
    pub(crate) fn ip(&self) -> Result<String> {
        let network = self.stage.cri.pod_status(&self.id)?.network.unwrap_or_default();
        ensure!(!network.ip.is_empty(), "the Pod has no address");
        Ok(network.ip)
    }

    /// Whether the Pod is ready, by CRI.
    pub(crate) fn is_ready(&self) -> Result<bool> {
        let status = self.stage.cri.pod_status(&self.id)?;
        Ok(status.state == i32::from(api::PodSandboxState::SandboxReady))
    }

    /// The Pod's cgroup, relative to each hierarchy.
    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let stopped = self.stage.cri.stop_pod(&self.id);
        let removed = stopped.and_then(|()| self.stage.cri.remove_pod(&self.id));
        if let Err(e) = removed {
            eprintln!("    clean-up of Pod {}: {e:#}", self.id);
        }
        self.stage.drop_cgroup(&self.cgroup);
    }
}

/// A container; its Pod removes it.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    stage: &'a Stage,
    /// CRI's id.
    pub(crate) id: String,
    log: PathBuf,
}

/// One line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// `stdout` or `stderr`.
    pub(crate) stream: String,
    /// The text; parts that CRI cut are joined.
    pub(crate) text: String,
}

impl Container<'_> {
    /// Runs `script` in the container; returns both streams and the exit code.
    pub(crate) fn exec(&self, script: &str) -> Result<api::ExecSyncResponse> {
        self.stage.cri.exec(&self.id, &["sh", "-c", script], 60)
    }

    /// Runs `script`, fails unless it exits with 0, and returns its output without the last newline.
    pub(crate) fn out(&self, script: &str) -> Result<String> {
        let done = self.exec(script)?;
        let text = String::from_utf8_lossy(&done.stdout).trim_end().to_owned();
        let err = String::from_utf8_lossy(&done.stderr).trim_end().to_owned();
        ensure!(done.exit_code == 0, "{script:?}: exit code {}: {text}{err}", done.exit_code);
        Ok(text)
    }

    /// The status by CRI.
    pub(crate) fn status(&self) -> Result<api::ContainerStatus> {
        self.stage.cri.status(&self.id)
    }

    /// Waits until the container has exited; returns its last status.
    pub(crate) fn exited(&self) -> Result<api::ContainerStatus> {
        self.exited_within(PATIENCE)
    }

    /// As [`Self::exited`], within `deadline`.
    pub(crate) fn exited_within(&self, deadline: Duration) -> Result<api::ContainerStatus> {
        until("the container's exit", deadline, || {
            let status = self.status()?;
            let exited = status.state == i32::from(api::ContainerState::ContainerExited);
            Ok(exited.then_some(status))
        })
    }

    /// Whether it is running, by CRI.
    pub(crate) fn is_running(&self) -> Result<bool> {
        Ok(self.status()?.state == i32::from(api::ContainerState::ContainerRunning))
    }

    /// The path of its log.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> Result<Vec<LogLine>> {
        Ok(parse_log(&fs::read_to_string(&self.log)?))
    }

    /// Waits until a line of the log is `text`.
    pub(crate) fn logged(&self, text: &str) -> Result<()> {
        until(&format!("log line {text:?}"), PATIENCE, || {
            Ok(self.log()?.iter().any(|line| line.text == text).then_some(()))
        })
    }
}

/// Reads CRI's log format: time, stream, F or P, text.
pub(crate) fn parse_log(text: &str) -> Vec<LogLine> {
    let mut lines: Vec<LogLine> = Vec::new();
    let mut open: Vec<LogLine> = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(4, ' ').skip(1);
        let (Some(stream), Some(tag)) = (fields.next(), fields.next()) else { continue };
        let part = fields.next().unwrap_or_default();
        let found = open.iter().position(|l| l.stream == stream);
        let mut whole = match found {
            Some(at) => open.swap_remove(at),
            None => LogLine { stream: stream.to_owned(), text: String::new() },
        };
        whole.text.push_str(part);
        if tag.starts_with('P') { open.push(whole) } else { lines.push(whole) }
    }
    lines.extend(open);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_the_parts_of_a_long_line_per_stream() {
        let text = "t stdout P ab\nt stderr F e\nt stdout F cd \nt stdout F \n";
        let lines: Vec<_> = parse_log(text).into_iter().map(|l| (l.stream, l.text)).collect();
        let expected = [("stderr", "e"), ("stdout", "abcd "), ("stdout", "")];
        assert_eq!(lines, expected.map(|(s, t)| (s.to_owned(), t.to_owned())));
    }
}
