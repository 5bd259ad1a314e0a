//! Removes what a container left: every step runs whether or not another one failed.

use std::path::Path;
use std::time::Duration;

use runsc::{Control, Runsc, RunscId, StateFiles};
use sandbox_core::{Error, Kind};
use sandbox_host::Host;
use sandbox_host::cgroup::Cgroup;
use sandbox_host::cleanup::{self, Steps};

use crate::error::GvisorError;
use crate::netns;
use crate::record::Record;

/// How long a killed process may take to exit.
const EXIT: Duration = Duration::from_secs(5);
/// How long a sandbox may take to remove a container.
const CALL: Duration = Duration::from_secs(3);

/// A container to clean up after.
#[derive(Debug)]
pub(crate) struct Remains<'a> {
    /// The container, by the id that this release gives runsc.
    pub(crate) id: &'a RunscId,
    pub(crate) bundle: &'a Path,
    /// runsc's state directory, for a bundle whose record is lost.
    pub(crate) root: &'a Path,
    /// The runsc that made it, where it can be called.
    pub(crate) runsc: Option<&'a Runsc>,
}

impl Remains<'_> {
    /// The record, or what runsc's own files contain where it is damaged.
    fn record(&self) -> Option<Record> {
        match Record::load(self.bundle) {
            Ok(Some(record)) => return Some(record),
            Ok(None) => {}
            Err(error) => tracing::warn!("cleaning up without a record: {}", Error::from(error)),
        }
        let known = |id: &RunscId| StateFiles::sandbox_of(self.root, id);
        let sandbox = known(self.id).or_else(|| known(&self.id.unterminated()))?;
        let root = self.root.to_owned();
        Some(Record { sandbox, root, processes: vec![], network: None, hooks: false, cgroup: None })
    }
}

/// Removes everything that `remains` has on the host. `running` is the control server of its
/// sandbox if that runs on without it.
pub(crate) async fn container(
    remains: &Remains<'_>,
    running: Option<&Control>,
    host: &dyn Host,
) -> Result<(), GvisorError> {
    let mut steps = Steps::<GvisorError>::default();
    let rootfs = remains.bundle.join("rootfs");
    if let Some(record) = remains.record() {
        let id = &record.sandbox.beside(&remains.id.to_string());
        let root = record.sandbox == *id;
        let files = StateFiles::new(&record.root, &record.sandbox, id);
        if let Some(control) = running {
            destroy(control, id).await;
        }
        if record.hooks {
            if let Some(runsc) = remains.runsc.filter(|_| files.exist()) {
                steps.take(runsc.delete(id, remains.bundle).await);
            }
        }
        let mut processes = record.processes.clone();
        processes.extend(files.gofer());
        processes.extend(runsc::strays(&record.root, id, remains.bundle));
        steps.take(cleanup::kill_all(&processes, EXIT).await);
        steps.take(file("removing the state of runsc in", &record.root, files.remove(root)));
        steps.take(file(
            "removing the filestore in",
            &rootfs,
            runsc::remove_filestore(&rootfs, &record.sandbox),
        ));
        if let Some(saved) = record.network {
            steps.take(netns::restore(saved).await);
        }
        if let Some(cgroup) = record.cgroup.filter(|_| running.is_none()) {
            steps.take(vacate(&cgroup).await);
        }
    }
    steps.take(host.unmount_all(&rootfs));
    let pid_file = runsc::pid_file(remains.bundle);
    steps.take(file("removing", &pid_file, runsc::remove_pid_file(remains.bundle)));
    if steps.clean() {
        // The record is removed last, and only when there is nothing else to find by it.
        steps.take(file("removing the record in", remains.bundle, Record::remove(remains.bundle)));
    }
    steps.result()
}

/// A step on a file, as an error of this backend's.
fn file(step: &'static str, path: &Path, result: std::io::Result<()>) -> Result<(), GvisorError> {
    result.map_err(|source| GvisorError::File { step, path: path.to_owned(), source })
}

/// Removes the sandbox's group. A shim that is about to exit may still be in it, and is waited for;
/// when this process itself is in it, the clean-up after this process removes it.
async fn vacate(cgroup: &Cgroup) -> Result<(), GvisorError> {
    if !cgroup.processes()?.contains(&std::process::id()) {
        cgroup.remove().await?;
    }
    Ok(())
}

/// Removes an exited container from its running sandbox.
async fn destroy(control: &Control, id: &RunscId) {
    match tokio::time::timeout(CALL, control.destroy(id)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => match Error::from(error) {
            // It never started there, or the sandbox has just exited.
            error if matches!(error.kind(), Kind::NotFound | Kind::Unavailable) => {}
            error => tracing::warn!(container = %id, "removing it from its sandbox: {error}"),
        },
        Err(_) => tracing::warn!(container = %id, "its sandbox did not remove it within {CALL:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sandbox_host::{FakeHost, ProcessRef};

    use super::*;

    #[tokio::test]
    async fn what_a_dead_shim_left_is_removed_any_number_of_times() {
        // Also what a shim of before the terminator left.
        let id = RunscId::new("sb");
        for made in [id.clone(), id.unterminated()] {
            cleaned_twice(&id, made).await;
        }
    }

    async fn cleaned_twice(id: &RunscId, made: RunscId) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        let root = dir.path().join("r");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::create_dir_all(&root).unwrap();
        let record = Record {
            sandbox: made.clone(),
            root: root.clone(),
            processes: vec![ProcessRef { pid: std::process::id(), start_time: 1 }],
            network: None,
            hooks: false,
            cgroup: None,
        };
        record.store(&bundle).unwrap();
        let made = &*made;
        for file in [
            format!("{made}_sandbox:{made}.state"),
            format!("{made}_sandbox:{made}.lock"),
            format!("runsc-{made}.sock"),
        ] {
            fs::write(root.join(file), "{}").unwrap();
        }
        fs::write(bundle.join("rootfs").join(format!(".gvisor.filestore.{made}")), "").unwrap();
        let host = FakeHost::new([]);
        let mount =
            sandbox_core::RootfsMount { kind: "bind".into(), source: "/".into(), options: vec![] };
        host.mount(&mount, &bundle.join("rootfs")).unwrap();
        for _ in 0..2 {
            let remains = Remains { id, bundle: &bundle, root: &root, runsc: None };
            container(&remains, None, &host).await.unwrap();
            assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
            assert_eq!(fs::read_dir(bundle.join("rootfs")).unwrap().count(), 0);
            assert_eq!(fs::read_dir(&bundle).unwrap().count(), 1, "only rootfs");
            assert!(host.mounted().is_empty());
        }
    }

    #[tokio::test]
    async fn a_damaged_record_does_not_prevent_a_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("r");
        fs::create_dir(&root).unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        let host = FakeHost::new([]);
        for made in ["sb+", "sb"] {
            fs::write(dir.path().join("gvisor.json"), "{").unwrap();
            fs::write(root.join(format!("{made}_sandbox:{made}.state")), "{}").unwrap();
            let id = RunscId::new("sb");
            let remains = Remains { id: &id, bundle: dir.path(), root: &root, runsc: None };
            container(&remains, None, &host).await.unwrap();
            assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "{made}");
            assert!(!dir.path().join("gvisor.json").exists());
        }
    }
}
