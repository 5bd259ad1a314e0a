//! A container in a sandbox.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use runsc::RunscId;
use sandbox_core::stdio::{Owner, Streams};
use sandbox_core::{Container, ExecProcess, Prepared, Resources, Result, Stats};

use crate::error::GvisorError;
use crate::exec::{self, Defaults, PreparedExec};
use crate::pod::Pod;
use crate::purge::{self, Remains};
use crate::runtime::Runtime;

/// A container.
#[derive(Debug)]
pub(crate) struct GvisorContainer {
    pub(crate) id: RunscId,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) owner: Owner,
    /// What execs inherit.
    pub(crate) defaults: Defaults,
    /// Its first process's, until it is deleted: an output fifo without a reader waits for one.
    pub(crate) _streams: Arc<Streams>,
}

impl GvisorContainer {
    /// Whether the sandbox was launched with it.
    fn is_root(&self) -> bool {
        self.pod.id == self.id
    }

    /// Every container's CPU time by id, and the memory of those beside the root.
    async fn usage(&self) -> (HashMap<String, u64>, u64) {
        let mut cpu = HashMap::new();
        let mut memory = 0;
        for id in self.pod.members() {
            // One that has just exited is no longer counted.
            let Ok(event) = self.pod.control.event(&id).await else { continue };
            if id != self.pod.id {
                memory += event.memory;
            }
            let own = event.cpu.get(&*id).copied().unwrap_or(event.cpu_of_cgroup);
            cpu.insert((*id).to_owned(), own);
        }
        (cpu, memory)
    }
}

#[async_trait]
impl Container for GvisorContainer {
    fn pid(&self) -> u32 {
        self.pod.process.pid
    }

    async fn exec(&self, request: ExecProcess) -> Result<Box<dyn Prepared>> {
        let ExecProcess { spec, stdio, .. } = request;
        let net_raw = self.runtime.config.net_raw();
        let args = exec::arguments(&spec, &self.id, stdio.terminal, &self.defaults, net_raw)?;
        Ok(Box::new(PreparedExec {
            args,
            paths: stdio,
            size: exec::console_size(&spec),
            owner: self.owner.clone(),
            pod: Arc::clone(&self.pod),
            runtime: Arc::clone(&self.runtime),
        }))
    }

    async fn update(&self, resources: &Resources) -> Result<()> {
        Ok(self.pod.group.update(&self.id, resources)?)
    }

    async fn stats(&self) -> Result<Stats> {
        self.pod.check_lives()?;
        let event = self.pod.control.event(&self.id).await?;
        let (cpu, memory) = self.usage().await;
        Ok(self.pod.group.stats(&self.id, &self.pod.id, &event, &cpu, memory))
    }

    async fn pause(&self) -> Result<()> {
        Ok(self.pod.pause().await?)
    }

    async fn resume(&self) -> Result<()> {
        Ok(self.pod.resume().await?)
    }

    async fn checkpoint(&self, image: PathBuf, exit: bool) -> Result<()> {
        // A client of containerd's pauses what it checkpoints, so a paused sandbox is as good.
        self.pod.check_lives()?;
        if !self.is_root() {
            let id = self.id.to_string();
            let sandbox = self.pod.id.to_string();
            return Err(GvisorError::PartialCheckpoint { id, sandbox }.into());
        }
        std::fs::create_dir_all(&image).map_err(|source| GvisorError::File {
            step: "making the checkpoint's directory",
            path: image.clone(),
            source,
        })?;
        Ok(self.runtime.runsc.checkpoint(&self.id, &self.bundle, &image, !exit).await?)
    }

    async fn delete(&self) -> Result<()> {
        let pod = &self.pod;
        let runsc = &self.runtime.runsc;
        if self.is_root() {
            pod.kill(runsc.delete_deadline()).await?;
        }
        pod.leave(&self.id);
        let remains =
            Remains { id: &self.id, bundle: &self.bundle, root: runsc.root(), runsc: Some(runsc) };
        let running = pod.exit.get().is_none().then_some(&pod.control);
        Ok(purge::container(&remains, running, &*self.runtime.host).await?)
    }
}
