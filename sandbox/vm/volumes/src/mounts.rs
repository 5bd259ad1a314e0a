//! The mounts of a configuration: those that are shared, those of the guest's own, and those that
//! are refused.

use std::path::{Component, Path, PathBuf};

use sandbox_host::{Bind, Propagation, ReadOnly};
use serde_json::{Value, json};
use vm_share::Volume;

use crate::config_json::{bind_source, in_empty_dir, is_bind, options};
use crate::devices::{add_block, guest_node};
use crate::error::{PlanError, invalid, unsupported};
use crate::facts::{Facts, Source, Tmpfs};
use crate::names::{hash, shared_at};
use crate::plan::{ContainerPlan, GUEST_ROOT, Request, Storage, StorageSource};

/// Upper bound on mounts per container.
const MOUNTS_MAX: usize = 1024;

/// Where shared memory is mounted, in a container and in the guest.
const SHM: &str = "/dev/shm";

/// File systems that a guest's kernel provides.
const OWN: [&str; 7] = ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "tmpfs", "devpts"];

/// Options of a bind that are kept in the guest. `rro` becomes `ro` there: the host enforces it.
const BIND_OPTIONS: [&str; 14] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "relatime",
    "noatime",
    "nodiratime",
    "strictatime",
    "sync",
    "dirsync",
];

/// Options that are about the host's mounts.
const HOST_OPTIONS: [&str; 6] =
    ["context=", "fscontext=", "defcontext=", "rootcontext=", "nsdelegate", "memory_recursiveprot"];

/// Rewrites every mount for the guest.
pub(crate) fn plan(
    plan: &mut ContainerPlan,
    request: &Request<'_>,
    facts: &Facts,
) -> Result<(), PlanError> {
    let mounts = match plan.spec.get_mut("mounts").map(Value::take) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(mounts)) => mounts,
        Some(_) => return Err(invalid("mounts", "this is no list")),
    };
    if mounts.len() > MOUNTS_MAX {
        let fault = format!("{} mounts; {MOUNTS_MAX} are allowed", mounts.len());
        return Err(invalid("mounts", fault));
    }
    let mut kept = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let destination = destination(mount, index)?;
        if is_bind(mount) {
            let bind = BindMount { mount, destination, index };
            kept.extend(bind.plan(plan, request, facts)?);
        } else {
            kept.push(own(mount, destination)?);
        }
    }
    plan.spec["mounts"] = kept.into();
    Ok(())
}

fn destination(mount: &Value, index: usize) -> Result<&str, PlanError> {
    let place = format!("mounts[{index}].destination");
    let Some(destination) = mount["destination"].as_str() else {
        return Err(invalid(place, "it is missing"));
    };
    let path = Path::new(destination);
    let up = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || up {
        return Err(invalid(place, format!("{destination:?} is no absolute path without \"..\"")));
    }
    Ok(destination)
}

/// A mount that the guest's kernel makes.
fn own(mount: &Value, destination: &str) -> Result<Value, PlanError> {
    let kind = mount["type"].as_str().unwrap_or_default();
    if !OWN.contains(&kind) {
        let reason = format!("a guest cannot mount type {kind:?}; use one of {}", OWN.join(", "));
        return Err(unsupported(format!("mount {destination}"), reason));
    }
    let of_host = |option: &&str| HOST_OPTIONS.iter().any(|start| option.starts_with(start));
    let options: Vec<&str> = options(mount).filter(|option| !of_host(option)).collect();
    // The source of such a mount is only a name.
    Ok(json!({"destination": destination, "type": kind, "source": kind, "options": options}))
}

/// A bind mount of the configuration.
struct BindMount<'a> {
    mount: &'a Value,
    destination: &'a str,
    index: usize,
}

impl BindMount<'_> {
    fn has(&self, names: &[&str]) -> bool {
        options(self.mount).any(|option| names.contains(&option))
    }

    fn refused(&self, source: &Path, reason: &str) -> PlanError {
        unsupported(format!("mount {} of {}", self.destination, source.display()), reason)
    }

    /// The guest's mount, if there is one.
    fn plan(
        &self,
        plan: &mut ContainerPlan,
        request: &Request<'_>,
        facts: &Facts,
    ) -> Result<Option<Value>, PlanError> {
        let Some(source) = bind_source(self.mount, request.bundle) else {
            return Err(invalid(format!("mount {}", self.destination), "a bind needs a source"));
        };
        self.check(&source)?;
        let found = facts.source(&source);
        let nests = facts.nests(&source);
        let before = plan.volumes.len();
        let guest = match found {
            Source::Missing => {
                let fault = format!("the host has no {}", source.display());
                return Err(invalid(format!("mount {}", self.destination), fault));
            }
            Source::Socket | Source::Fifo => {
                let reason = "a socket or fifo of the host cannot be reached from a virtual \
                              machine; use the network";
                return Err(self.refused(&source, reason));
            }
            Source::Huge => {
                return Err(self.refused(&source, "huge pages cannot be shared with a guest"));
            }
            Source::Block => {
                let read_only = self.read_only() != ReadOnly::No;
                add_block(plan, &source, self.destination, read_only, &Value::Null)?;
                return Ok(None);
            }
            Source::Character { major, minor } => match guest_node(major, minor) {
                Some(node) => node.to_owned(),
                None => return Err(self.refused(&source, "a guest has no such device")),
            },
            Source::Tmpfs(tmpfs) if self.is_pod_shm(&source, request) => {
                if let Some(guest) = &mut plan.guest {
                    guest.shm = Some((source.clone(), tmpfs.size));
                }
                SHM.to_owned()
            }
            Source::Tmpfs(tmpfs) if in_empty_dir(&source) => memory_volume(plan, &source, tmpfs),
            Source::MemoryPart => {
                let reason = "a subPath of a memory emptyDir would not be the directory that the \
                              Pod's other containers see; mount the whole volume";
                return Err(self.refused(&source, reason));
            }
            Source::Directory if source == Path::new("/dev") => {
                let reason = "the host's devices are not those of a virtual machine";
                return Err(self.refused(&source, reason));
            }
            Source::Directory | Source::File | Source::Tmpfs(_) => {
                self.share(plan, request, source, nests)
            }
        };
        // The host makes only what is shared read-only.
        let nests = nests && plan.volumes.len() > before;
        Ok(Some(self.guest(&guest, nests)))
    }

    /// Refuses options that cannot work in a guest, whatever the source is.
    fn check(&self, source: &Path) -> Result<(), PlanError> {
        if self.has(&["rshared", "shared"]) {
            let reason = "what a virtual machine mounts cannot appear on the host; use \
                          mountPropagation HostToContainer or None";
            return Err(self.refused(source, reason));
        }
        let mapped = |key: &str| self.mount[key].as_array().is_some_and(|all| !all.is_empty());
        if mapped("uidMappings") || mapped("gidMappings") || self.has(&["idmap", "ridmap"]) {
            return Err(self.refused(source, "volumes cannot be id-mapped into a virtual machine"));
        }
        Ok(())
    }

    fn is_pod_shm(&self, source: &Path, request: &Request<'_>) -> bool {
        let here = self.destination.trim_end_matches('/') == SHM;
        let known = match request.pod.opened {
            // An emptyDir at that path is a volume like any other.
            false => !in_empty_dir(source),
            true => request.pod.shm.as_deref() == Some(source),
        };
        here && known
    }

    fn read_only(&self) -> ReadOnly {
        let last = options(self.mount).filter(|o| ["ro", "rw", "rro"].contains(o)).last();
        match last {
            Some("rro") => ReadOnly::All,
            Some("ro") => ReadOnly::Top,
            _ => ReadOnly::No,
        }
    }

    fn share(
        &self,
        plan: &mut ContainerPlan,
        request: &Request<'_>,
        source: PathBuf,
        nests: bool,
    ) -> String {
        let slave = self.has(&["slave", "rslave"]);
        // With mounts below it, a read-only mount in the guest would cover those too.
        let own = in_empty_dir(&source) && !nests;
        let how = Bind {
            recursive: self.has(&["rbind"]),
            read_only: if own { ReadOnly::No } else { self.read_only() },
            propagation: if slave { Propagation::Slave } else { Propagation::Private },
        };
        // Container ids are unique and not reused.
        let name = format!("v{:016x}x{}", hash(&request.id.as_str()), self.index);
        let guest = shared_at(&name);
        plan.volumes.push(Volume { name, source, how });
        guest
    }

    /// The guest's own mount. `nests`: the host has mounts below the source, which are one file
    /// system to the guest, so that only the host can make parts of it read-only.
    fn guest(&self, source: &str, nests: bool) -> Value {
        let mut kept = vec!["rbind", "rprivate"];
        for option in options(self.mount) {
            match option {
                "rro" => kept.push("ro"),
                "ro" if nests && self.read_only() == ReadOnly::Top => {}
                known if BIND_OPTIONS.contains(&known) => kept.push(known),
                // Labels, propagation and others that are about the host.
                _ => {}
            }
        }
        json!({
            "destination": self.destination, "type": "bind", "source": source, "options": kept,
        })
    }
}

/// A tmpfs of the guest for a memory emptyDir; the same for every container of the Pod.
fn memory_volume(plan: &mut ContainerPlan, source: &Path, tmpfs: Tmpfs) -> String {
    let mount_point = format!("{GUEST_ROOT}/ephemeral/{:016x}", hash(&source));
    if !plan.storages.iter().any(|storage| storage.mount_point == mount_point) {
        let source = StorageSource::Tmpfs(tmpfs);
        plan.storages.push(Storage { mount_point: mount_point.clone(), source });
    }
    mount_point
}
