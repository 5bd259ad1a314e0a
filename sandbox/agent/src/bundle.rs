//! A container's bundle: what has to be there before its process is created.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::agent::{BlockDevice, CreateContainerRequest};
use agent_system::{MountedStorages, Rootfs, Storages, find_disk, make_dir, write_sysctl};
use libcontainer::oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::error::{Doing, Result, invalid};
use crate::paths::{container_dir, states};
use crate::{devices, limits, spec};

/// A prepared bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) mounts: Mounts,
}

/// A container's file systems, unmounted when dropped: the root file system before the storages.
#[derive(Debug)]
pub(crate) struct Mounts {
    _rootfs: Rootfs,
    _storages: MountedStorages,
}

/// Mounts the container's file systems, writes its `config.json` and creates its cgroup. Blocks.
pub(crate) fn prepare(
    storages: &Arc<Storages>,
    request: &CreateContainerRequest,
    pid_namespace: Option<String>,
    terminal: bool,
) -> Result<Bundle> {
    let id = &request.container;
    let dir = container_dir(id);
    make_dir(&dir)?;
    let mut storages = storages.mount(&request.storages)?;
    let wanted = request.rootfs.as_ref().ok_or_else(|| invalid("rootfs is missing"))?;
    let rootfs = Rootfs::mount(&dir, wanted)?;
    let disks = request.devices.iter().map(device).collect::<Result<Vec<_>>>()?;
    let (nodes, disk_rules): (Vec<_>, Vec<_>) = disks.into_iter().unzip();
    let placement = spec::Placement {
        rootfs: &rootfs.path,
        cgroup: Cgroup::spec_path(id),
        pid_namespace,
        terminal,
        devices: nodes,
    };
    let adapted = spec::adapt(&request.spec, &placement)?;
    for (key, value) in &adapted.sysctls {
        write_sysctl(key, value)?;
    }
    let mounts = adapted.spec.mounts().iter().flatten();
    storages.automount(mounts.filter_map(|mount| mount.source().as_deref()))?;
    make_cwd(&rootfs.path, &adapted.spec);
    let config = dir.join("config.json");
    fs::write(&config, &adapted.json).doing(|| format!("writing {}", config.display()))?;
    let cgroup = Cgroup::of(id);
    cgroup.create()?;
    cgroup.write_all(&limits::settings(&adapted.resources)?)?;
    let allowed = adapted.resources.devices().as_deref().unwrap_or_default();
    cgroup.restrict_devices(&devices::rules(allowed, &disk_rules)?)?;
    make_dir(&states())?;
    let mounts = Mounts { _rootfs: rootfs, _storages: storages };
    Ok(Bundle { dir, spec: adapted.spec, mounts })
}

/// Removes the cgroup and the directories of a container that is deleted or could not be created.
pub(crate) fn remove(id: &str) -> Result<()> {
    let cgroup = Cgroup::of(id).remove();
    for dir in [container_dir(id), states().join(id)] {
        match fs::remove_dir_all(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(|| format!("removing {}", dir.display())),
        }
    }
    cgroup
}

/// A disk's node as `linux.devices` has it, and the rule that allows its use.
fn device(wanted: &BlockDevice) -> Result<(Value, devices::Rule)> {
    if !wanted.path.starts_with("/dev/") {
        return Err(invalid(format!("device path {:?} is not below /dev", wanted.path)));
    }
    let found = find_disk(&wanted.serial)?;
    let node = json!({
        "path": wanted.path, "type": "b", "major": found.major, "minor": found.minor,
        "fileMode": wanted.mode & 0o777, "uid": wanted.uid, "gid": wanted.gid,
    });
    Ok((node, devices::Rule::disk(found.major, found.minor, wanted.read_only)))
}

/// Creates a working directory that the image lacks, as other engines do. If that fails,
/// libcontainer reports the error when it changes to the directory.
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
    fn a_device_node_is_below_dev() {
        let wanted = BlockDevice { path: "/etc/passwd".into(), ..BlockDevice::default() };
        let error = device(&wanted).unwrap_err().to_string();
        assert_eq!(error, "device path \"/etc/passwd\" is not below /dev");
    }
}
