//! What runsc keeps on disk: its state directory, and its files beside a container's own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_host::ProcessRef;
use serde::Deserialize;

use crate::id::RunscId;

/// runsc's own files for a container.
#[derive(Debug, Clone)]
pub struct StateFiles {
    root: PathBuf,
    stem: String,
    sandbox: RunscId,
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
    pub fn new(root: &Path, sandbox: &RunscId, id: &RunscId) -> Self {
        let stem = format!("{}_sandbox:{}", &**id, &**sandbox);
        Self { root: root.to_owned(), stem, sandbox: sandbox.clone() }
    }

    /// The sandbox that container `id` is in, by runsc's own files in `root`.
    pub fn sandbox_of(root: &Path, id: &RunscId) -> Option<RunscId> {
        let start = format!("{}_sandbox:", &**id);
        let names = fs::read_dir(root).ok()?.flatten().map(|entry| entry.file_name());
        let stem = |name: OsString| {
            let name = name.into_string().ok()?;
            name.strip_prefix(&start)?.strip_suffix(".state").map(RunscId::written)
        };
        names.filter_map(stem).next()
    }

    fn state(&self) -> PathBuf {
        self.root.join(format!("{}.state", self.stem))
    }

    /// Where the sandbox's control server listens.
    pub fn socket(&self) -> PathBuf {
        let usual = self.root.join(format!("runsc-{}.sock", &*self.sandbox));
        let recorded = self.read().map(|s| s.sandbox.socket).unwrap_or_default();
        if recorded.as_os_str().is_empty() { usual } else { recorded }
    }

    /// Whether runsc knows the container.
    pub fn exist(&self) -> bool {
        self.state().exists()
    }

    /// The container's gofer, if it has one that runs.
    pub fn gofer(&self) -> Option<ProcessRef> {
        let state = self.read()?;
        ProcessRef::of(state.gofer).filter(|_| state.gofer != 0)
    }

    fn read(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.state()).ok()?).ok()
    }

    /// Removes the container's files, and with `sandbox` the sandbox's.
    pub fn remove(&self, sandbox: bool) -> io::Result<()> {
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
pub fn remove_filestore(rootfs: &Path, sandbox: &RunscId) -> io::Result<()> {
    gone(fs::remove_file(rootfs.join(format!(".gvisor.filestore.{}", &**sandbox))))
}

/// Where `create` writes the sandbox's process id.
pub fn pid_file(bundle: &Path) -> PathBuf {
    bundle.join("runsc.pid")
}

/// Removes [`pid_file`]; fine if it is not there.
pub fn remove_pid_file(bundle: &Path) -> io::Result<()> {
    gone(fs::remove_file(pid_file(bundle)))
}

/// Takes an absent file for a removed one.
fn gone(result: io::Result<()>) -> io::Result<()> {
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
    fn runscs_files_are_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let files = StateFiles::new(dir.path(), &RunscId::new("sb"), &RunscId::new("ct"));
        assert!(!files.exist());
        assert_eq!(files.socket(), dir.path().join("runsc-sb+.sock"));
        let own = std::process::id();
        let state =
            format!(r#"{{"id":"ct","goferPid":{own},"sandbox":{{"controlSocketPath":"/tmp/s"}}}}"#);
        fs::write(dir.path().join("ct+_sandbox:sb+.state"), state).unwrap();
        fs::write(dir.path().join("ct+_sandbox:sb+.lock"), "").unwrap();
        assert!(files.exist());
        let sandbox = |id| StateFiles::sandbox_of(dir.path(), &RunscId::new(id));
        assert_eq!(sandbox("ct"), Some(RunscId::new("sb")));
        assert_eq!(sandbox("c"), None);
        assert_eq!(files.socket(), PathBuf::from("/tmp/s"));
        assert_eq!(files.gofer().unwrap().pid, own);
        files.remove(false).unwrap();
        files.remove(true).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
