//! The root file system: disks where the snapshotter provides images, else the share.

use std::path::{Path, PathBuf};

use sandbox_core::RootfsMount;
use sandbox_host::{Bind, Propagation, ReadOnly};
use vm_driver::Disk;
use vm_share::{Shared, SharedMount};

use crate::error::{PlanError, invalid, unsupported};
use crate::facts::{Facts, Source};
use crate::names::disk_id;
use crate::plan::{
    ContainerPlan, GUEST_ROOT, GuestDisk, ROOTFS, Request, Rootfs, Storage, StorageSource,
};

/// File systems on disks that a guest mounts.
const ON_DISK: [&str; 4] = ["erofs", "ext4", "xfs", "btrfs"];

/// Maximum number of layers of an overlay in the guest.
const LAYERS_MAX: usize = 100;

/// Options of an image that are about the host's way to mount it.
const HOST_OPTIONS: [&str; 6] = ["loop", "defaults", "ro", "rw", "nouuid", "bind"];

/// Plans the root file system.
pub(crate) fn plan(
    plan: &mut ContainerPlan,
    request: &Request<'_>,
    facts: &Facts,
) -> Result<(), PlanError> {
    let kinds: Vec<&str> = request.rootfs.iter().map(kind).collect();
    if kinds.iter().any(|kind| ON_DISK.contains(kind)) {
        return on_disks(plan, request, facts);
    }
    if let Some(mount) = request.rootfs.iter().find(|mount| mount.kind.contains('/')) {
        let reason = "only containerd's mount manager can do that; do not hand it to the shim";
        return Err(unsupported(place(mount), reason));
    }
    let what = match request.rootfs {
        // Nothing to mount: it is in the bundle or at `root.path`.
        [] => Shared::Path {
            source: request.bundle.join(request.spec["root"]["path"].as_str().unwrap_or(ROOTFS)),
            how: Bind {
                recursive: true,
                read_only: ReadOnly::No,
                propagation: Propagation::Private,
            },
        },
        mounts => Shared::Rootfs(mounts.to_vec()),
    };
    plan.shared.push(SharedMount { name: ROOTFS.into(), what });
    Ok(())
}

/// The file system type without the steps that come before the mount (`format/mkdir/overlay`).
fn kind(mount: &RootfsMount) -> &str {
    mount.kind.rsplit('/').next().unwrap_or_default()
}

fn place(mount: &RootfsMount) -> String {
    format!("root file system, {} mount of {}", mount.kind, mount.source)
}

fn on_disks(
    plan: &mut ContainerPlan,
    request: &Request<'_>,
    facts: &Facts,
) -> Result<(), PlanError> {
    let Some((last, before)) = request.rootfs.split_last() else { return Ok(()) };
    if before.is_empty() {
        return alone(plan, request, Image::of(last, facts)?);
    }
    let images =
        before.iter().map(|mount| Image::of(mount, facts)).collect::<Result<Vec<_>, _>>()?;
    let (lower, upper) = stack(last, images.len())?;
    let lower: Vec<GuestDisk> = lower.into_iter().map(|at| images[at].add(plan, true)).collect();
    if lower.is_empty() || lower.len() > LAYERS_MAX {
        let fault = format!("{} layers; 1 to {LAYERS_MAX} can be had", lower.len());
        return Err(invalid(place(last), fault));
    }
    let upper = upper.map(|index| &images[index]);
    if let Some(image) = upper {
        if image.read_only {
            let fault = format!("its writable layer {} is read-only", image.path.display());
            return Err(invalid(place(last), fault));
        }
    }
    let upper = upper.map(|image| image.add(plan, false));
    plan.rootfs = Rootfs::Layers { lower, upper };
    Ok(())
}

/// One image is the whole root file system: a layer, or a writable disk of the container's own
/// (devmapper, blockfile).
fn alone(plan: &mut ContainerPlan, request: &Request<'_>, image: Image) -> Result<(), PlanError> {
    if image.read_only {
        let disk = image.add(plan, true);
        plan.rootfs = Rootfs::Layers { lower: vec![disk], upper: None };
        return Ok(());
    }
    let mount_point = format!("{GUEST_ROOT}/disks/{}", request.id);
    let source = StorageSource::Disk(image.add(plan, false));
    plan.storages.push(Storage { mount_point: mount_point.clone(), source });
    plan.rootfs = Rootfs::Path(mount_point);
    Ok(())
}

/// An image file or block device with a file system.
struct Image {
    path: PathBuf,
    fs_type: String,
    options: Vec<String>,
    read_only: bool,
}

impl Image {
    fn of(mount: &RootfsMount, facts: &Facts) -> Result<Self, PlanError> {
        if !ON_DISK.contains(&mount.kind.as_str()) {
            let reason = "this is no image that can be a disk; do not hand this type to the shim";
            return Err(unsupported(place(mount), reason));
        }
        let path = PathBuf::from(&mount.source);
        match facts.source(&path) {
            Source::File | Source::Block => {}
            Source::Missing => return Err(invalid(place(mount), "the host has no such file")),
            _ => return Err(invalid(place(mount), "it is neither a file nor a block device")),
        }
        let has = |start: &str| mount.options.iter().any(|option| option.starts_with(start));
        if has("X-containerd.dmverity=") {
            let reason = "its dm-verity tree would not be checked in the guest; set \
                          dmverity_mode = \"off\" in the erofs snapshotter for this handler";
            return Err(unsupported(place(mount), reason));
        }
        if has("device=") {
            let reason = "an image that spans several devices cannot be a disk; turn \
                          the merging of layers off in the erofs snapshotter";
            return Err(unsupported(place(mount), reason));
        }
        let of_host =
            |o: &String| HOST_OPTIONS.contains(&o.as_str()) || o.starts_with("X-containerd.");
        let options = mount.options.iter().filter(|option| !of_host(option)).cloned().collect();
        let read_only = mount.kind == "erofs" || mount.options.iter().any(|option| option == "ro");
        Ok(Self { path, fs_type: mount.kind.clone(), options, read_only })
    }

    /// Adds its disk to the plan, and returns what the guest mounts.
    fn add(&self, plan: &mut ContainerPlan, read_only: bool) -> GuestDisk {
        let id = disk_id(&self.path, read_only);
        plan.disks.push(Disk { id: id.clone(), path: self.path.clone(), read_only });
        let mut options = self.options.clone();
        if self.fs_type == "xfs" {
            // Copies of an image have the same UUID, and xfs refuses to mount a UUID twice.
            options.push("nouuid".into());
        }
        let fs_type = self.fs_type.clone();
        GuestDisk { serial: id, fs_type, options, read_only }
    }
}

/// What the last mount makes of the `count` images before it: lower layers, the highest first,
/// and the writable one.
fn stack(last: &RootfsMount, count: usize) -> Result<(Vec<usize>, Option<usize>), PlanError> {
    let wrong = |what: &str| unsupported(place(last), format!("{what} is not understood"));
    let checked = |index: usize| match index < count {
        true => Ok(index),
        false => Err(invalid(place(last), format!("it refers to mount {index} of {count}"))),
    };
    let value = |key: &str| {
        let mut found = last.options.iter().filter_map(|option| option.strip_prefix(key));
        found.next()
    };
    if value("uidmap=").or(value("gidmap=")).is_some() {
        return Err(unsupported(place(last), "images cannot be id-mapped into a virtual machine"));
    }
    let lower = match kind(last) {
        "bind" => last.source.as_str(),
        "overlay" => value("lowerdir=").ok_or_else(|| wrong("an overlay without lowerdir"))?,
        other => return Err(wrong(other)),
    };
    let mut layers = Vec::new();
    for part in lower.split(':') {
        match template(part) {
            Some((range, "")) => layers.extend(range),
            _ => return Err(wrong(&format!("layer {part:?}"))),
        }
    }
    let layers = layers.into_iter().map(checked).collect::<Result<_, _>>()?;
    let upper = match value("upperdir=").map(|dir| (dir, template(dir))) {
        // A directory of the host: the guest's memory is used instead.
        Some((dir, None)) if Path::new(dir).is_absolute() => None,
        Some((_, Some((range, "/upper")))) if range.len() == 1 => Some(checked(range[0])?),
        Some((dir, _)) => return Err(wrong(&format!("upperdir {dir:?}"))),
        None => None,
    };
    Ok((layers, upper))
}

/// The mounts that `{{ mount N }}` or `{{ overlay A B }}` at the start of `text` stands for, and
/// what follows it (containerd's docs/mounts.md).
fn template(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inside, rest) = text.strip_prefix("{{")?.split_once("}}")?;
    let words: Vec<&str> = inside.split_ascii_whitespace().collect();
    let number = |word: &str| word.parse::<usize>().ok().filter(|n| *n < 1024);
    let range = match words[..] {
        ["mount", only] => vec![number(only)?],
        ["overlay", first, last] => {
            let first = number(first)?;
            let last = number(last)?;
            if first <= last { (first..=last).collect() } else { (last..=first).rev().collect() }
        }
        _ => return None,
    };
    Some((range, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        assert_eq!(template("{{ mount 2 }}/upper"), Some((vec![2], "/upper")));
        assert_eq!(template("{{overlay 1 3}}"), Some((vec![1, 2, 3], "")));
        assert_eq!(template("{{ overlay 3 1 }}"), Some((vec![3, 2, 1], "")));
        for other in ["/var/lib/x", "{{ source 0 }}", "{{ mount -1 }}", "{{ mount 99999 }}", "{{"] {
            assert_eq!(template(other), None, "{other}");
        }
    }
}
