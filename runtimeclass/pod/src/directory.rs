//! What is kept on the node: one directory for each Pod.
//!
//! ```text
//! <state directory>/<namespace>_<name>/
//!     pod.json       the record: name, namespace, uid
//!     logs/          the containers' logs, as CRI writes them
//!     volumes/       the volumes
//!     parts/         subPath mounts
//!     files/         /etc/hosts and the termination messages
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mounts;
use crate::node_error::NodeError;

const RECORD: &str = "pod.json";

/// Why a Pod's directory cannot be created or removed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A sandbox or directory of a Pod with this name exists.
    #[error("Pod {pod} is already played on this node; `bulkhead down {pod}` removes it")]
    Exists {
        /// The Pod's namespace and name.
        pod: String,
    },
    /// The directory is not that Pod's.
    #[error("{directory} is not removed: its {RECORD} is not that of Pod {pod}")]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// The Pod's namespace and name.
        pod: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What identifies a Pod in its directory.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The directory of one Pod.
#[derive(Clone, Debug)]
pub struct PodDirectory {
    path: PathBuf,
}

/// The directory of a Pod, whether or not it exists.
pub(crate) fn pod_directory(state: &Path, namespace: &str, name: &str) -> PathBuf {
    state.join(format!("{namespace}_{name}"))
}

fn private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// The records of all Pods with a directory.
pub(crate) fn records(state: &Path) -> Result<Vec<Record>, NodeError> {
    let entries = match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(NodeError::at("read", state))?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(NodeError::at("read", state))?.path();
        records.extend(record(&path)?);
    }
    Ok(records)
}

/// A container's log file, relative to the Pod's log directory.
pub(crate) fn log_path(container: &str) -> String {
    format!("{container}/0.log")
}

/// The record in a directory, if there is one.
pub(crate) fn record(directory: &Path) -> Result<Option<Record>, NodeError> {
    let path = directory.join(RECORD);
    match fs::read(&path) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        bytes => {
            let bytes = bytes.map_err(NodeError::at("read", &path))?;
            let record = serde_json::from_slice(&bytes).map_err(io::Error::from);
            record.map(Some).map_err(NodeError::at("read the record", &path))
        }
    }
}

impl PodDirectory {
    /// Reserves the Pod's name: only one caller can create the directory.
    pub(crate) fn create(state: &Path, record: &Record) -> Result<Self, DirectoryError> {
        let mut parents = fs::DirBuilder::new();
        parents
            .recursive(true)
            .mode(0o711)
            .create(state)
            .map_err(NodeError::at("create", state))?;
        let path = pod_directory(state, &record.namespace, &record.name);
        private(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                let pod = format!("{}/{}", record.namespace, record.name);
                return DirectoryError::Exists { pod };
            }
            NodeError::at("create", &path)(error).into()
        })?;
        let directory = Self { path };
        if let Err(error) = directory.fill(record) {
            // The first error is the cause; anything that stays makes the next run fail with its path.
            let _second = fs::remove_dir_all(&directory.path);
            return Err(error.into());
        }
        Ok(directory)
    }

    fn fill(&self, record: &Record) -> Result<(), NodeError> {
        // Renamed into place: a reader sees the whole record or none.
        let new = self.path.join("pod.json.new");
        let place = self.path.join(RECORD);
        let text = serde_json::to_vec(record).map_err(io::Error::from);
        text.and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &place))
            .map_err(NodeError::at("write", &place))?;
        for part in ["logs", "volumes", "parts", "files"] {
            let part = self.path.join(part);
            private(&part).map_err(NodeError::at("create", &part))?;
        }
        Ok(())
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The volumes.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// The target of one subPath mount.
    pub(crate) fn part(&self, container: &str, mount: usize) -> PathBuf {
        self.path.join("parts").join(format!("{container}_{mount}"))
    }

    /// A file that is mounted into containers.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join("files").join(name)
    }

    /// Creates a container's empty log file, so that it can be watched before the container runs.
    pub(crate) fn create_log(&self, log_path: &str) -> Result<PathBuf, NodeError> {
        let path = self.path.join("logs").join(log_path);
        let parent = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(parent).map_err(NodeError::at("create", parent))?;
        fs::File::create_new(&path).map_err(NodeError::at("create", &path))?;
        Ok(path)
    }
}

/// Removes a Pod's directory with everything mounted below it, if it is that Pod's; returns whether it existed.
pub(crate) fn remove(
    directory: &Path,
    namespace: &str,
    name: &str,
) -> Result<bool, DirectoryError> {
    if !directory.exists() {
        return Ok(false);
    }
    let ours = record(directory)?.is_some_and(|it| it.namespace == namespace && it.name == name);
    // A directory without a record is one whose creation was interrupted; it holds nothing else.
    let empty = !directory.join(RECORD).exists() && !directory.join("volumes").exists();
    if !ours && !empty {
        let pod = format!("{namespace}/{name}");
        return Err(DirectoryError::Foreign { directory: directory.to_owned(), pod });
    }
    mounts::unmount_below(directory)?;
    fs::remove_dir_all(directory).map_err(NodeError::at("remove", directory))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record { namespace: "ns".into(), name: "web".into(), uid: "u".into() }
    }

    #[test]
    fn a_name_is_reserved_once_and_removed() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().join("deep/state");
        assert_eq!(records(&state).unwrap(), []);
        let directory = PodDirectory::create(&state, &record()).unwrap();
        let again = PodDirectory::create(&state, &record()).unwrap_err();
        assert_eq!(
            again.to_string(),
            "Pod ns/web is already played on this node; `bulkhead down ns/web` removes it"
        );
        assert_eq!(records(&state).unwrap(), [record()]);
        assert!(directory.create_log("c/0.log").unwrap().is_file());
        assert!(remove(directory.path(), "ns", "web").unwrap());
        assert!(!remove(directory.path(), "ns", "web").unwrap());
        assert_eq!(records(&state).unwrap(), []);
    }

    #[test]
    fn a_foreign_directory_stays() {
        let state = tempfile::tempdir().unwrap();
        let directory = PodDirectory::create(state.path(), &record()).unwrap();
        assert!(matches!(
            remove(directory.path(), "ns", "other"),
            Err(DirectoryError::Foreign { .. })
        ));
        let other = state.path().join("other");
        fs::create_dir_all(other.join("volumes")).unwrap();
        assert!(matches!(remove(&other, "ns", "web"), Err(DirectoryError::Foreign { .. })));
        assert!(other.exists());
    }
}
