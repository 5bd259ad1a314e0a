//! Cleaning up after a container, from its bundle alone: a failed step does not stop the others, and
//! all of it can be repeated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::{Bundle, Error, Id};
use sandbox_host::cleanup::{self, Steps};
use sandbox_host::{Hooks, Host};
use vm_share::Tree;

use crate::error::VmError;
use crate::record::Record;

/// How long a process may take to exit after SIGKILL.
const END: Duration = Duration::from_secs(5);

/// Removes everything of container `id` on the host, and the VM if the container booted it.
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
            vm(&record, host, &mut steps).await;
        } else {
            let tree = Tree::at(Arc::clone(host), &record.dir);
            steps.take(tree.remove(id).map_err(Error::from));
        }
        if record.hooks {
            steps.take(poststop(id, bundle, host, record).await);
        }
    }
    steps.take(host.unmount_all(&bundle.join("rootfs")));
    if steps.clean() {
        // The record is removed last, and only when nothing is left of what it lists.
        steps.take(Record::remove(bundle).map_err(VmError::file("removing the record in", bundle)));
    }
    steps.result()
}

/// Runs the container's `poststop` hooks, once.
async fn poststop(
    id: &Id,
    bundle: &Path,
    host: &Arc<dyn Host>,
    record: Record,
) -> Result<(), VmError> {
    let config = Bundle::load(bundle)?;
    Hooks::read(config.json(), id.as_str(), bundle)?.stopped(&**host).await;
    Ok(Record { hooks: false, ..record }.store(bundle)?)
}

async fn vm(record: &Record, host: &Arc<dyn Host>, steps: &mut Steps<VmError>) {
    steps.take(cleanup::kill_all(&record.processes, END).await);
    if let Some(network) = &record.network {
        steps.take(vm_network::undo(network).await.map_err(Error::from));
    }
    let purged = vm_share::purge(Arc::clone(host), &record.dir).await.map_err(Error::from);
    let unmounted = host.unmount_all(&record.dir);
    let clean = purged.is_ok() && unmounted.is_ok();
    steps.take(purged);
    steps.take(unmounted);
    if clean {
        // Only now: with a mount still below it, this would remove a user's files.
        steps.take(remove_dir(&record.dir));
    }
}

/// Removes a VM's directory: sockets, logs and empty mount points.
fn remove_dir(dir: &Path) -> Result<(), VmError> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(VmError::file("removing", dir)),
    }
}
