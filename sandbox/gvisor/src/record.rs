//! What a container's bundle records of it, so that it can be cleaned up by its bundle alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use runsc::RunscId;
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
    pub(crate) sandbox: RunscId,
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
        match fs::remove_file(bundle.join(FILE)) {
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(())
            }
            removed => removed,
        }
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
            sandbox: RunscId::new("sb"),
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
}
