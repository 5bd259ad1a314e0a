//! What a container's bundle remembers of it, so that somebody who knows the bundle alone can
//! take it down.

use std::path::{Path, PathBuf};

use sandbox_core::host::ProcessRef;
use sandbox_core::record::{self, RecordError};
use serde::{Deserialize, Serialize};

use crate::network::NetworkRecord;

/// The record's name in the bundle.
const FILE: &str = "vm.json";

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The id of the sandbox it is in; its own when it made it.
    pub(crate) sandbox: String,
    /// The machine's directory.
    pub(crate) dir: PathBuf,
    /// Processes that live for the machine; in the record of the container that made it.
    #[serde(default)]
    pub(crate) processes: Vec<ProcessRef>,
    /// What was done to the Pod's network, in the same record.
    #[serde(default)]
    pub(crate) network: Option<NetworkRecord>,
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
    pub(crate) fn remove(bundle: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(bundle.join(FILE)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}
