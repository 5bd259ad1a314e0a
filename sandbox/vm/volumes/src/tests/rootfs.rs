//! Root file systems.

use vm_share::Shared;

use super::*;
use crate::plan::GuestDisk;

fn layers(plan: &ContainerPlan) -> (&[GuestDisk], &Option<GuestDisk>) {
    match &plan.rootfs {
        Rootfs::Layers { lower, upper } => (lower, upper),
        path => panic!("no layers: {path:?}"),
    }
}

/// What containerd's erofs snapshotter hands over, with a writable image or without.
fn erofs(upper: bool) -> Case {
    let layer = ["ro", "loop"];
    let case = ["/s/1/layer.erofs", "/s/2/layer.erofs", "/s/3/rwlayer.img"]
        .iter()
        .fold(container(), |case, path| case.source(path, Source::File));
    if upper {
        return case.rootfs(&[
            ("ext4", "/s/3/rwlayer.img", &["rw", "loop"]),
            ("erofs", "/s/2/layer.erofs", &layer),
            ("erofs", "/s/1/layer.erofs", &layer),
            (
                "format/mkdir/overlay",
                "overlay",
                &[
                    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                    "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                    "workdir={{ mount 0 }}/work",
                    "upperdir={{ mount 0 }}/upper",
                    "lowerdir={{ overlay 1 2 }}",
                ],
            ),
        ]);
    }
    case.rootfs(&[
        ("erofs", "/s/1/layer.erofs", &layer),
        (
            "format/mkdir/overlay",
            "overlay",
            &["workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir={{ mount 0 }}"],
        ),
    ])
}

#[test]
fn erofs_layers_are_disks() {
    let plan = erofs(true).plan().unwrap();
    let paths: Vec<_> =
        plan.disks.iter().map(|d| (d.path.to_str().unwrap(), d.read_only)).collect();
    let wanted =
        [("/s/2/layer.erofs", true), ("/s/1/layer.erofs", true), ("/s/3/rwlayer.img", false)];
    assert_eq!(paths, wanted);
    let (lower, upper) = layers(&plan);
    let upper = upper.as_ref().unwrap();
    let serials: Vec<_> = lower.iter().map(|disk| &disk.serial).collect();
    assert_eq!(serials, [&plan.disks[0].id, &plan.disks[1].id]);
    assert!(lower.iter().all(|d| d.fs_type == "erofs" && d.read_only && d.options.is_empty()));
    assert_eq!(
        (upper.serial.as_str(), upper.fs_type.as_str()),
        (plan.disks[2].id.as_str(), "ext4")
    );
    assert!(plan.shared.iter().all(|shared| shared.name != "rootfs"));

    let plan = erofs(false).plan().unwrap();
    let (lower, upper) = layers(&plan);
    assert_eq!((lower.len(), plan.disks.len()), (1, 1));
    assert_eq!(*upper, None);
}

#[test]
fn one_image_is_a_layer_or_a_disk_of_its_own() {
    let case = container().source("/s/1/layer.erofs", Source::File);
    let plan = case.rootfs(&[("erofs", "/s/1/layer.erofs", &["ro", "loop"])]).plan().unwrap();
    assert_eq!(layers(&plan).0.len(), 1);
    let case = container().source("/dev/mapper/snap-7", Source::Block);
    let plan = case.rootfs(&[("xfs", "/dev/mapper/snap-7", &["nouuid"])]).plan().unwrap();
    assert_eq!(plan.rootfs, Rootfs::Path("/run/bulkhead/disks/c1".into()));
    let storage = &plan.storages[0];
    assert_eq!(storage.mount_point, "/run/bulkhead/disks/c1");
    let StorageSource::Disk(disk) = &storage.source else { panic!("a disk: {storage:?}") };
    assert_eq!((disk.fs_type.as_str(), disk.read_only), ("xfs", false));
    assert_eq!(disk.options, ["nouuid"]);
    assert_eq!(plan.disks[0].path, Path::new("/dev/mapper/snap-7"));
}

#[test]
fn root_file_systems_that_cannot_be_are_refused() {
    type Mounts<'a> = &'a [(&'a str, &'a str, &'a [&'a str])];
    let cases: [(Mounts<'_>, &str); 7] = [
        (&[("erofs", "/s/1", &["ro", "device=/s/2"])], "several devices"),
        (&[("erofs", "/s/1", &["ro", "X-containerd.dmverity=/s/1.dmverity"])], "dm-verity"),
        (&[("mkfs/ext4", "/s/1", &["rw"])], "no image that can be a disk"),
        (&[("format/overlay", "overlay", &["lowerdir={{ mount 0 }}"])], "mount manager"),
        (
            &[("erofs", "/s/1", &[]), ("format/overlay", "o", &["lowerdir={{ mount 4 }}"])],
            "mount 4 of 1",
        ),
        (
            &[("erofs", "/s/1", &[]), ("format/overlay", "o", &["lowerdir=/s/9/fs"])],
            "\"/s/9/fs\" is not understood",
        ),
        (&[("erofs", "/none", &[])], "no such file"),
    ];
    for (mounts, part) in cases {
        let case = container().source("/s/1", Source::File).rootfs(mounts);
        let (kind, text) = case.refused();
        assert!(text.contains(part), "{text}");
        assert!(matches!(kind, Kind::Unimplemented | Kind::InvalidArgument));
    }
}

#[test]
fn disks_are_counted_across_the_pod_and_shared_in_it() {
    let mut case = erofs(true);
    let ids: BTreeSet<String> = case.plan().unwrap().disks.into_iter().map(|d| d.id).collect();
    case.pod.disks = ids.iter().take(1).cloned().chain(["other".into()]).collect();
    assert!(case.plan().is_ok(), "one of three is there, another beside it: four");
    case.pod.disks.insert("one".into());
    let (kind, text) = case.refused();
    assert_eq!(kind, Kind::FailedPrecondition);
    assert!(text.starts_with("the Pod needs 5 disks, cloud-hypervisor takes 4;"), "{text}");
}

#[test]
fn a_bundle_without_mounts_has_its_root_file_system_in_place() {
    let bundle = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1/rootfs";
    for (root, wanted) in [("rootfs", bundle), ("/srv/debian", "/srv/debian")] {
        let mut case = container().rootfs(&[]);
        case.spec["root"]["path"] = root.into();
        let plan = case.plan().unwrap();
        let Shared::Path { source, how } = &plan.shared[0].what else { panic!("a bind") };
        assert_eq!((source.to_str(), how.recursive), (Some(wanted), true));
        assert_eq!(plan.rootfs, Rootfs::Path("/run/bulkhead/share/c1/rootfs".into()));
        assert_eq!(plan.spec["root"]["path"], "rootfs");
    }
}
