//! What a VM is launched with, beside what its Pod requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use guest_image::GuestImage;
use sandbox_core::Id;
use sandbox_host::Host;
use sha2::{Digest, Sha256};
use vm_driver::Driver;

use crate::config::VmConfig;

/// The handler's settings, and what was found on the host by them.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) config: Arc<VmConfig>,
    /// containerd's namespace.
    pub(crate) namespace: Id,
    /// With a mount namespace of its own, in which the Pod's files are mounted.
    pub(crate) host: Arc<dyn Host>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) image: GuestImage,
    /// How long it took to find these.
    pub(crate) prepared: Duration,
}

impl Environment {
    /// The directory of the VM of sandbox `id`: short, for the sockets in it, and derived from
    /// namespace and id alone.
    pub(crate) fn vm_dir(&self, id: &Id) -> PathBuf {
        vm_dir(&self.config.root, &self.namespace, id)
    }
}

fn vm_dir(root: &Path, namespace: &Id, id: &Id) -> PathBuf {
    let digest = Sha256::digest(format!("{namespace}/{id}"));
    let name: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    root.join(name)
}
