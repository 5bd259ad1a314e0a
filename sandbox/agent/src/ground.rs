//! What stands before a container's process: mounts, specification, control group.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::GUEST_ROOT;
use agent_api::agent::{BlockDevice, CreateContainerRequest};
use libcontainer::oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::boot::make_dir;
use crate::cgroup::Cgroup;
use crate::error::{Doing, Result, invalid};
use crate::guest::{Guest, sysctl};
use crate::rootfs::Rootfs;
use crate::storage::Held;
use crate::{devices, disk, limits, spec};

/// What was made before a container's process.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) dir: PathBuf,
    pub(crate) fitted: spec::Fitted,
    pub(crate) rootfs: Rootfs,
    pub(crate) held: Held,
}

/// Where libcontainer keeps what it knows of containers.
pub(crate) fn states() -> PathBuf {
    Path::new(GUEST_ROOT).join("states")
}

/// Where the container `id` keeps what is its own.
fn dir_of(id: &str) -> PathBuf {
    Path::new(GUEST_ROOT).join("containers").join(id)
}

/// Everything before the process. Blocks.
pub(crate) fn prepare(
    guest: &Arc<Guest>,
    request: &CreateContainerRequest,
    pid_namespace: Option<String>,
    terminal: bool,
) -> Result<Ground> {
    let id = &request.container;
    let dir = dir_of(id);
    make_dir(&dir)?;
    let mut held = guest.storages.hold(&request.storages)?;
    let wanted = request.rootfs.as_ref().ok_or_else(|| invalid("rootfs is missing"))?;
    let rootfs = Rootfs::prepare(&dir, wanted)?;
    let disks = request.devices.iter().map(device).collect::<Result<Vec<_>>>()?;
    let (nodes, disks): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
    let cgroup = Cgroup::spec_path(id);
    let place =
        spec::Place { rootfs: &rootfs.path, cgroup, pid_namespace, terminal, devices: nodes };
    let fitted = spec::fit(&request.spec, &place)?;
    for (key, value) in &fitted.sysctls {
        sysctl(key, value)?;
    }
    let mounts = fitted.spec.mounts().iter().flatten();
    held.walk(mounts.filter_map(|mount| mount.source().as_deref()))?;
    make_cwd(&rootfs.path, &fitted.spec);
    let config = dir.join("config.json");
    fs::write(&config, &fitted.json).doing(|| format!("writing {}", config.display()))?;
    let group = Cgroup::of(id);
    group.create()?;
    group.write(&limits::writes(&fitted.resources)?)?;
    let allowed = fitted.resources.devices().as_deref().unwrap_or_default();
    group.confine(&devices::rules(allowed, &disks)?)?;
    make_dir(&states())?;
    Ok(Ground { dir, fitted, rootfs, held })
}

/// What a container that could not be made, or is deleted, may have left.
pub(crate) fn sweep(id: &str) -> Result<()> {
    let group = Cgroup::of(id).remove();
    for dir in [dir_of(id), states().join(id)] {
        match fs::remove_dir_all(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(|| format!("removing {}", dir.display())),
        }
    }
    group
}

/// A disk's node, as `linux.devices` has it, and its use.
fn device(wanted: &BlockDevice) -> Result<(Value, devices::Rule)> {
    if !wanted.path.starts_with("/dev/") {
        return Err(invalid(format!("device path {:?} is not below /dev", wanted.path)));
    }
    let found = disk::find(&wanted.serial)?;
    let node = json!({
        "path": wanted.path, "type": "b", "major": found.major, "minor": found.minor,
        "fileMode": wanted.mode & 0o777, "uid": wanted.uid, "gid": wanted.gid,
    });
    Ok((node, devices::Rule::disk(found.major, found.minor, wanted.read_only)))
}

/// Other engines make a working directory that the image lacks. Where it cannot be made,
/// libcontainer says so when it goes there.
fn make_cwd(rootfs: &Path, spec: &Spec) {
    let Some(process) = spec.process() else { return };
    if let Ok(root) = pathrs::Root::open(rootfs) {
        if root.resolve(process.cwd()).is_err() {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            let _ = root.mkdir_all(process.cwd(), &mode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_node_stays_below_dev() {
        let wanted = BlockDevice { path: "/etc/passwd".into(), ..BlockDevice::default() };
        let error = device(&wanted).unwrap_err().to_string();
        assert_eq!(error, "device path \"/etc/passwd\" is not below /dev");
    }
}
