//! The only file that names every backend.

use std::path::PathBuf;
use std::sync::Arc;

use sandbox_core::{Backend, Id};
use sandbox_gvisor::GvisorBackend;
use sandbox_host::{Host, find_program};
use sandbox_vm::VmBackend;

use crate::config::Handler;

/// The backend that runs a handler's Pods.
pub fn backend(handler: &Handler, namespace: &Id, host: Arc<dyn Host>) -> Arc<dyn Backend> {
    match handler {
        Handler::Gvisor(config) => {
            Arc::new(GvisorBackend::new(config.clone(), namespace.clone(), host))
        }
        Handler::Vm(config) => Arc::new(VmBackend::new(config.clone(), namespace.clone(), host)),
    }
}

/// The program whose pages are most of the memory that a handler's Pods share: each Pod runs it in
/// its own control group.
pub fn program(handler: &Handler) -> Option<PathBuf> {
    match handler {
        Handler::Gvisor(config) => find_program(&config.runsc),
        // Most of a VM's memory is its guest's.
        Handler::Vm(_) => None,
    }
}

/// What a handler's containers support, as the OCI runtime specification's `features` document:
/// containerd derives from it what it may request (recursive read-only mounts, user namespaces), so
/// it lists nothing that the backend does not do.
pub fn features(handler: &Handler) -> serde_json::Value {
    match handler {
        Handler::Gvisor(config) => serde_json::json!({
            "ociVersionMin": "1.0.0",
            "ociVersionMax": "1.1.0",
            "mountOptions": [
                "bind", "rbind", "ro", "rro", "rw", "private", "rprivate", "slave", "rslave",
            ],
            "linux": {
                "namespaces": ["ipc", "mount", "network", "pid", "uts"],
                "seccomp": { "enabled": config.oci_seccomp },
                "mountExtensions": { "idmap": { "enabled": false } },
            },
        }),
        Handler::Vm(_) => serde_json::json!({
            "ociVersionMin": "1.0.0",
            "ociVersionMax": "1.1.0",
            "mountOptions": [
                "bind", "rbind", "ro", "rro", "rw", "private", "rprivate", "slave", "rslave",
            ],
            "linux": {
                "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
                "cgroup": { "v2": true },
                "seccomp": { "enabled": true },
                "mountExtensions": { "idmap": { "enabled": false } },
            },
        }),
    }
}
