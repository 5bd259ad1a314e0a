//! A container's record in its bundle, from which a process that knows only the bundle can clean it
//! up.

use std::path::{Path, PathBuf};

use sandbox_host::ProcessRef;
use sandbox_host::record::{self, RecordError};
use serde::{Deserialize, Serialize};
use vm_network::NetworkRecord;

/// The record's name in the bundle.
const FILE: &str = "vm.json";

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The id of its sandbox; its own for the container that booted the VM.
    pub(crate) sandbox: String,
    /// The VM's directory.
    pub(crate) dir: PathBuf,
    /// The VM's processes; only in the record of the container that booted it.
    #[serde(default)]
    pub(crate) processes: Vec<ProcessRef>,
    /// The changes to the Pod's network; only in the same record.
    #[serde(default)]
    pub(crate) network: Option<NetworkRecord>,
    /// Whether its configuration has hooks, of which `poststop` is still to run.
    #[serde(default)]
    pub(crate) hooks: bool,
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

    /// Removes it from the bundle. Succeeds if there is none.
    pub(crate) fn remove(bundle: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(bundle.join(FILE)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}
