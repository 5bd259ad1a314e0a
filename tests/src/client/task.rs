//! Containers and tasks through `ctr`, for what CRI has no call.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stage::Stage;
use crate::bed::containerd::NAMESPACE;
use crate::bed::handler::Handler;
use crate::bed::image;
use crate::bed::process::{Run, kill_group, patience, until};

/// A container that `ctr run` makes, without any of CRI's annotations; removed when dropped.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    stage: &'a Stage,
    /// Its id.
    pub(crate) id: String,
}

impl<'a> Task<'a> {
    /// A container that does not exist yet, under a new name.
    pub(crate) fn new(stage: &'a Stage) -> Self {
        Self::named(stage, format!("{}-{}", stage.node.place().id(), stage.unique()))
    }

    /// A container that does not exist yet, with the id `id`.
    pub(crate) fn named(stage: &'a Stage, id: String) -> Self {
        stage.node.expect_shim(NAMESPACE, &id);
        Self { stage, id }
    }

    /// `ctr run FLAGS IMAGE ID WORDS` under the stage's handler.
    pub(crate) fn run(&self, flags: &[&str], words: &[&str]) -> Run {
        let run = self.start().args(["--cgroup", &self.cgroup()]).args(flags);
        run.arg(image::BUSYBOX).arg(&self.id).args(words)
    }

    /// `ctr run FLAGS --config FILE ID` under the stage's handler: everything else is in the file.
    pub(crate) fn run_config(&self, flags: &[&str], file: &str) -> Run {
        self.start().args(flags).args(["--config", file]).arg(&self.id)
    }

    /// The path of its cgroup.
    pub(crate) fn cgroup(&self) -> String {
        format!("{}/ctr-{}", self.stage.node.place().cgroup(), self.id)
    }

    fn start(&self) -> Run {
        let stage = self.stage;
        let mut run = stage.node.ctr(NAMESPACE).args(["run", "--runtime"]);
        run = run.arg(stage.handler.runtime_type());
        if stage.handler != Handler::Runc {
            let file = stage.node.handlers().join(format!("{}.toml", stage.handler.name()));
            run = run.arg("--runtime-config-path").arg(file);
        }
        run
    }

    /// `ctr tasks WORDS`.
    pub(crate) fn tasks(&self, words: &[&str]) -> Run {
        self.stage.node.ctr(NAMESPACE).arg("tasks").args(words)
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        // Both fail when the case removed them already, as `run --rm` does.
        let _ = self.tasks(&["rm", "--force", &self.id]).finish();
        let node = &self.stage.node;
        let _ = node.ctr(NAMESPACE).args(["containers", "rm", &self.id]).finish();
        self.stage.drop_cgroup(&self.cgroup());
        self.stage.drop_cgroup(&node.place().cgroup());
    }
}

/// A `ctr events` that listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Events {
    child: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Starts listening to every event of `namespace`.
    pub(crate) fn listen(stage: &Stage, namespace: &str) -> Result<Self> {
        let run = stage.node.ctr(namespace).arg("events");
        let mut child = run.spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
        let out = child.stdout.take().context("ctr events has no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let events = Self { child, lines };
        // ctr prints nothing when it has subscribed, so events are made until one is seen.
        until("ctr events listens", Duration::from_secs(20), || {
            let label = ["namespaces", "label", namespace, "bulkhead.test=events"];
            stage.node.ctr(namespace).args(label).ok()?;
            let seen = events.lines.try_iter().any(|line| line.contains("/namespaces/update"));
            Ok(seen.then_some(()))
        })?;
        Ok(events)
    }

    /// Collects topics of `/tasks/` with events of `id`, until `last` was seen `times` times.
    pub(crate) fn until(&self, id: &str, last: &str, times: usize) -> Result<Vec<String>> {
        let end = Instant::now() + patience(Duration::from_secs(20));
        let mut topics: Vec<String> = Vec::new();
        while topics.iter().filter(|topic| *topic == last).count() < times {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(id) => {
                    let topic = line.split(' ').find(|word| word.starts_with("/tasks/"));
                    topics.extend(topic.map(str::to_owned));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("no {times}th event {last} of {id}; seen: {topics:?}");
                }
            }
        }
        Ok(topics)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}
