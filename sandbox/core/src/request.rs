//! What containerd asks of a sandbox, in this project's own terms.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};

use crate::bundle::Bundle;
use crate::id::{Id, Invalid};

/// CRI's mark of a container's part in its Pod.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// CRI's name of the Pod's sandbox container.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// The group that containerd's own clients ask for when no CRI is there.
pub const GROUP: &str = "io.containerd.runc.v2.group";

/// The part a container plays in its Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The Pod's sandbox ("pause") container: it makes the sandbox.
    Sandbox,
    /// A container that joins the sandbox of the named Pod.
    Member {
        /// The sandbox container's id.
        sandbox: Id,
    },
    /// No Pod at all (`ctr run`, nerdctl, BuildKit): a sandbox of its own.
    Standalone,
}

impl Role {
    /// Reads the role from the annotations that CRI sets.
    ///
    /// # Errors
    ///
    /// [`Invalid`] when the sandbox id is no id.
    pub fn of(spec: &Spec) -> Result<Self, Invalid> {
        let annotation =
            |key| spec.annotations().as_ref().and_then(|all| all.get(key)).map(String::as_str);
        match (annotation(CONTAINER_TYPE), annotation(SANDBOX_ID)) {
            (Some("container"), Some(sandbox)) => Ok(Self::Member { sandbox: Id::new(sandbox)? }),
            (Some("sandbox"), _) => Ok(Self::Sandbox),
            _ => Ok(Self::Standalone),
        }
    }
}

/// A mount of the root file system, as the snapshotter described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system type (`overlay`, `bind`, `ext4`, `erofs`, ...).
    pub kind: String,
    /// Device or directory.
    pub source: String,
    /// Options in fstab's form, one per element.
    pub options: Vec<String>,
}

/// Where a process's streams come from and go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// Path of a fifo, or none.
    pub stdin: Option<String>,
    /// Path of a fifo, `file://PATH`, `binary://PATH?ARGS`, or none.
    pub stdout: Option<String>,
    /// As `stdout`; unused with a terminal.
    pub stderr: Option<String>,
    /// One pseudo-terminal for all three.
    pub terminal: bool,
}

/// A container to make.
#[derive(Debug)]
pub struct CreateContainer {
    /// Its id.
    pub id: Id,
    /// Its part in the Pod.
    pub role: Role,
    /// Its bundle, config.json read.
    pub bundle: Bundle,
    /// Mounts to put on the bundle's `rootfs`, in order.
    pub rootfs: Vec<RootfsMount>,
    /// Its streams.
    pub stdio: StdioPaths,
    /// A checkpoint's directory to restore from.
    pub checkpoint: Option<PathBuf>,
}

/// A process to add to a running container.
#[derive(Debug, Clone)]
pub struct ExecProcess {
    /// Its id, unique within the container.
    pub id: Id,
    /// What to run, as whom.
    pub spec: ProcessSpec,
    /// Its streams.
    pub stdio: StdioPaths,
}

/// Limits to put on a running container: the OCI runtime specification's own type.
pub type Resources = LinuxResources;
