//! A container in a sandbox.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use sandbox_core::sandbox::Container;
use sandbox_core::{ExecProcess, Process, ProcessInfo, Resources, Result, Stats};

use crate::error::GvisorError;
use crate::exec::{self, Defaults, Exec, Home};
use crate::purge::{self, Remains};
use crate::runsc::Runsc;

/// A container.
#[derive(Debug)]
pub(crate) struct GvisorContainer {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) home: Home,
    pub(crate) runsc: Arc<Runsc>,
    pub(crate) defaults: Defaults,
    pub(crate) net_raw: bool,
    pub(crate) execs: Mutex<Vec<Weak<Exec>>>,
}

impl GvisorContainer {
    fn is_root(&self) -> bool {
        self.home.pod.id == self.id
    }

    /// Every other container's id with what it uses, and the CPU time of all.
    async fn others(&self) -> Result<(HashMap<String, u64>, u64), GvisorError> {
        let pod = &self.home.pod;
        let (mut cpu, mut memory) = (HashMap::new(), 0);
        for id in pod.members() {
            // One that has just ended is no longer counted.
            let Ok(event) = pod.control.event(&id).await else { continue };
            if id != pod.id {
                memory += event.event.data.memory.usage.usage;
            }
            let own = event.cpu.get(&id).copied().unwrap_or(event.event.data.cpu.usage.total);
            cpu.insert(id, own);
        }
        Ok((cpu, memory))
    }
}

#[async_trait]
impl Container for GvisorContainer {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.home.init) as Arc<dyn Process>
    }

    async fn exec(&self, request: ExecProcess) -> Result<Arc<dyn Process>> {
        self.home.init.check_runs()?;
        let terminal = request.stdio.terminal;
        let args =
            exec::arguments(&request.spec, &self.id, terminal, &self.defaults, self.net_raw)?;
        let exec = Arc::new(Exec::new(request, self.home.clone(), args));
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.retain(|known| known.strong_count() > 0);
        execs.push(Arc::downgrade(&exec));
        Ok(exec)
    }

    async fn update(&self, resources: &Resources) -> Result<()> {
        Ok(self.home.pod.group.update(&self.id, resources)?)
    }

    async fn stats(&self) -> Result<Stats> {
        let pod = &self.home.pod;
        if pod.ended.get().is_some() {
            return Err(GvisorError::SandboxEnded(pod.id.clone()).into());
        }
        let event = pod.control.event(&self.id).await?;
        let (cpu, memory) = self.others().await?;
        Ok(pod.group.stats(&self.id, &pod.id, &event, &cpu, memory))
    }

    async fn pause(&self) -> Result<()> {
        self.home.init.check_runs()?;
        Ok(self.home.pod.pause().await?)
    }

    async fn resume(&self) -> Result<()> {
        Ok(self.home.pod.resume().await?)
    }

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        let pod = &self.home.pod;
        // containerd takes an empty list for a task that is gone, and its exit code with it: one
        // that has ended keeps the process that stood for it until it is deleted.
        let stands_for_it = || vec![ProcessInfo { pid: pod.process.pid, exec_id: None }];
        if pod.ended.get().is_some() || self.home.init.ended().is_some() {
            return Ok(stands_for_it());
        }
        let processes = pod.control.processes(&self.id).await?;
        if processes.is_empty() {
            return Ok(stands_for_it());
        }
        let execs: HashMap<u32, String> = {
            let known = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
            let running = known.iter().filter_map(Weak::upgrade);
            let numbered =
                |e: Arc<Exec>| Some((u32::try_from(e.guest_pid()?).ok()?, e.id().to_owned()));
            running.filter_map(numbered).collect()
        };
        let info = |pid| ProcessInfo { pid, exec_id: execs.get(&pid).cloned() };
        Ok(processes.into_iter().map(|p| info(p.pid)).collect())
    }

    async fn checkpoint(&self, image: PathBuf, exit: bool) -> Result<()> {
        // A client of containerd's pauses what it checkpoints, so a paused sandbox is as good.
        self.home.init.check_runs()?;
        self.home.pod.check_lives()?;
        if !self.is_root() {
            let (id, sandbox) = (self.id.clone(), self.home.pod.id.clone());
            return Err(GvisorError::PartialCheckpoint { id, sandbox }.into());
        }
        std::fs::create_dir_all(&image).map_err(|source| GvisorError::File {
            step: "making the checkpoint's directory",
            path: image.clone(),
            source,
        })?;
        Ok(self.runsc.checkpoint(&self.id, &self.bundle, &image, !exit).await?)
    }

    async fn delete(&self) -> Result<()> {
        let pod = &self.home.pod;
        if self.is_root() {
            pod.kill(self.runsc.delete_deadline()).await?;
        } else if self.home.init.ended().is_none() && pod.ended.get().is_none() {
            return Err(GvisorError::Running(self.id.clone()).into());
        }
        pod.leave(&self.id);
        let (id, bundle) = (self.id.as_str(), self.bundle.as_path());
        let remains = Remains { id, bundle, root: self.runsc.root(), runsc: Some(&self.runsc) };
        let living = pod.ended.get().is_none().then_some(&pod.control);
        Ok(purge::container(&remains, living, &*self.home.host).await?)
    }

    async fn oom_killed(&self) -> bool {
        self.home.pod.group.oom_killed()
    }
}
