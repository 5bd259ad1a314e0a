//! What a container's bundle records of it, so that it can be cleaned up by its bundle alone.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_host::ProcessRef;
use sandbox_host::cgroup::Cgroup;
use sandbox_host::record::{self, RecordError};
use serde::{Deserialize, Serialize};

use crate::netns::SavedNetwork;

/// The record's name in the bundle.
const FILE: &str = "gvisor.json";

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The id of the sandbox it is in; its own when it was launched with it.
    pub(crate) sandbox: String,
    /// runsc's state directory.
    pub(crate) root: PathBuf,
    /// Processes that run for it: the sandbox (in the record of the container it was launched with) and
    /// the container's gofer.
    #[serde(default)]
    pub(crate) processes: Vec<ProcessRef>,
    /// What to restore on the Pod's interfaces.
    #[serde(default)]
    pub(crate) network: Option<SavedNetwork>,
    /// Whether its configuration has hooks, which runsc runs when it deletes it.
    #[serde(default)]
    pub(crate) hooks: bool,
    /// The control group to remove with it.
    #[serde(default)]
    pub(crate) cgroup: Option<Cgroup>,
}

impl Record {
    /// Writes it to the bundle.
    pub(crate) fn store(&self, bundle: &Path) -> Result<(), RecordError> {
        record::store(&bundle.join(FILE), self)
    }

    /// Reads it from the bundle; `None` if there is none.
    pub(crate) fn load(bundle: &Path) -> Result<Option<Self>, RecordError> {
        record::load(&bundle.join(FILE))
    }

    /// Removes it from the bundle; fine if it is not there.
    pub(crate) fn remove(bundle: &Path) -> io::Result<()> {
        gone(fs::remove_file(bundle.join(FILE)))
    }
}

/// runsc's own files for a container.
#[derive(Debug, Clone)]
pub(crate) struct StateFiles {
    root: PathBuf,
    stem: String,
    sandbox: String,
}

/// The part of runsc's state file that is read (`runsc/container/container.go`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    #[serde(rename = "goferPid")]
    gofer: u32,
    sandbox: SandboxState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SandboxState {
    #[serde(rename = "controlSocketPath")]
    socket: PathBuf,
}

impl StateFiles {
    /// Those of container `id` in `sandbox`, below runsc's state directory `root`.
    pub(crate) fn new(root: &Path, sandbox: &str, id: &str) -> Self {
        let stem = format!("{id}_sandbox:{sandbox}");
        Self { root: root.to_owned(), stem, sandbox: sandbox.to_owned() }
    }

    /// The sandbox that container `id` is in, by runsc's own files in `root`.
    pub(crate) fn sandbox_of(root: &Path, id: &str) -> Option<String> {
        let start = format!("{id}_sandbox:");
        let names = fs::read_dir(root).ok()?.flatten().map(|entry| entry.file_name());
        let stem = |name: OsString| {
            let name = name.into_string().ok()?;
            name.strip_prefix(&start)?.strip_suffix(".state").map(str::to_owned)
        };
        names.filter_map(stem).next()
    }

    fn state(&self) -> PathBuf {
        self.root.join(format!("{}.state", self.stem))
    }

    /// Where the sandbox's control server listens.
    pub(crate) fn socket(&self) -> PathBuf {
        let usual = self.root.join(format!("runsc-{}.sock", self.sandbox));
        let recorded = self.read().map(|s| s.sandbox.socket).unwrap_or_default();
        if recorded.as_os_str().is_empty() { usual } else { recorded }
    }

    /// Whether runsc knows the container.
    pub(crate) fn exist(&self) -> bool {
        self.state().exists()
    }

    /// The container's gofer, if it has one that runs.
    pub(crate) fn gofer(&self) -> Option<ProcessRef> {
        let state = self.read()?;
        ProcessRef::of(state.gofer).filter(|_| state.gofer != 0)
    }

    fn read(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.state()).ok()?).ok()
    }

    /// Removes the container's files, and with `sandbox` the sandbox's.
    pub(crate) fn remove(&self, sandbox: bool) -> io::Result<()> {
        let socket = self.socket();
        let mut result = gone(fs::remove_file(self.state()));
        let lock = self.root.join(format!("{}.lock", self.stem));
        result = result.and(gone(fs::remove_file(lock)));
        if sandbox {
            result = result.and(gone(fs::remove_file(socket)));
        }
        result
    }
}

/// Removes the file in which runsc keeps what a container wrote to its root file system
/// (`overlay2 = "root:self"`); fine if it is not there.
pub(crate) fn remove_filestore(rootfs: &Path, sandbox: &str) -> io::Result<()> {
    gone(fs::remove_file(rootfs.join(format!(".gvisor.filestore.{sandbox}"))))
}

/// Takes an absent file for a removed one.
pub(crate) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_without_the_shim() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), None);
        let record = Record {
            sandbox: "sb".into(),
            root: "/run/r".into(),
            processes: ProcessRef::of(std::process::id()).into_iter().collect(),
            network: None,
            hooks: true,
            cgroup: None,
        };
        record.store(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), Some(record));
        Record::remove(dir.path()).unwrap();
        Record::remove(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn runscs_files_are_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let files = StateFiles::new(dir.path(), "sb", "ct");
        assert!(!files.exist());
        assert_eq!(files.socket(), dir.path().join("runsc-sb.sock"));
        let own = std::process::id();
        let state =
            format!(r#"{{"id":"ct","goferPid":{own},"sandbox":{{"controlSocketPath":"/tmp/s"}}}}"#);
        fs::write(dir.path().join("ct_sandbox:sb.state"), state).unwrap();
        fs::write(dir.path().join("ct_sandbox:sb.lock"), "").unwrap();
        assert!(files.exist());
        assert_eq!(StateFiles::sandbox_of(dir.path(), "ct").as_deref(), Some("sb"));
        assert_eq!(StateFiles::sandbox_of(dir.path(), "c"), None);
        assert_eq!(files.socket(), PathBuf::from("/tmp/s"));
        assert_eq!(files.gofer().unwrap().pid, own);
        files.remove(false).unwrap();
        files.remove(true).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
