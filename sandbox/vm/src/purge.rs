//! Taking down what a container left, knowing its bundle alone: every step whether or not another
//! one failed, and any number of times.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::cleanup::{self, Steps};
use sandbox_core::host::Host;
use sandbox_core::{Error, Id};

use crate::error::VmError;
use crate::network;
use crate::record::Record;
use crate::share::{self, Tree};

/// How long a killed process may take to end.
const END: Duration = Duration::from_secs(5);

/// Removes everything that container `id` has on the host; with the container that made the
/// machine goes the machine.
pub(crate) async fn container(id: &Id, bundle: &Path, host: &Arc<dyn Host>) -> Result<(), VmError> {
    let mut steps = Steps::<VmError>::default();
    let record = match Record::load(bundle) {
        Ok(record) => record,
        Err(error) => {
            steps.take(Err::<(), _>(error));
            None
        }
    };
    if let Some(record) = record {
        if record.sandbox == id.as_str() {
            machine(&record, host, &mut steps).await;
        } else {
            let tree = Tree::at(Arc::clone(host), &record.dir);
            steps.take(tree.remove(id).map_err(Error::from));
        }
    }
    steps.take(host.unmount_all(&bundle.join("rootfs")));
    if steps.clean() {
        // The record goes last, and only when nothing is left that it could tell of.
        steps.take(Record::remove(bundle).map_err(VmError::file("removing the record in", bundle)));
    }
    steps.result()
}

async fn machine(record: &Record, host: &Arc<dyn Host>, steps: &mut Steps<VmError>) {
    steps.take(cleanup::kill_all(&record.processes, END).await);
    if let Some(network) = &record.network {
        steps.take(network::undo(network).await.map_err(Error::from));
    }
    let purged = share::purge(Arc::clone(host), &record.dir).await.map_err(Error::from);
    let unmounted = host.unmount_all(&record.dir);
    let bare = purged.is_ok() && unmounted.is_ok();
    steps.take(purged);
    steps.take(unmounted);
    if bare {
        // Only now: a mount below it would lead to somebody's files.
        steps.take(remove_dir(&record.dir));
    }
}

/// Removes a machine's directory: sockets, logs and empty mount points.
fn remove_dir(dir: &Path) -> Result<(), VmError> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(VmError::file("removing", dir)),
    }
}
