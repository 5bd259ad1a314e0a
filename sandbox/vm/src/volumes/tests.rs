//! Plans of configurations as containerd 1.7 to 2.2 writes them.

use sandbox_core::host::{Bind, Propagation, ReadOnly};
use serde_json::json;

use super::*;
use crate::share::Shared;

const CAPABILITIES: Capabilities = Capabilities {
    name: "cloud-hypervisor",
    emulated: false,
    disks: 4,
    grow_memory: true,
    grow_vcpus: true,
    stream_write_max: None,
};
const SHM: &str = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/sb/shm";
const RESOLV: &str = "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/sb/resolv.conf";
const MEMORY: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache";
const SECRET: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/token";
const TMPFS: Tmpfs = Tmpfs { size: 64 << 20, mode: 0o1777, uid: 0, gid: 0 };

/// One container, its facts and its Pod, to be changed by a test.
struct Case {
    spec: Value,
    rootfs: Vec<RootfsMount>,
    pod: PodState,
    facts: Facts,
}

impl Case {
    fn plan(&self) -> Result<ContainerPlan, PlanError> {
        let id = Id::new("c1").unwrap();
        let request = Request {
            id: &id,
            bundle: Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1"),
            spec: &self.spec,
            rootfs: &self.rootfs,
            pod: &self.pod,
            capabilities: &CAPABILITIES,
        };
        plan(&request, &self.facts)
    }

    fn refused(&self) -> (Kind, String) {
        let error = self.plan().expect_err("this must be refused");
        (error.kind(), error.to_string())
    }

    fn source(mut self, path: &str, source: Source) -> Self {
        self.facts.sources.insert(path.into(), source);
        self
    }

    fn bind(mut self, destination: &str, source: &str, options: &[&str]) -> Self {
        let mount = json!({
            "destination": destination, "type": "bind", "source": source, "options": options,
        });
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    fn rootfs(mut self, mounts: &[(&str, &str, &[&str])]) -> Self {
        let mount = |(kind, source, options): &(&str, &str, &[&str])| RootfsMount {
            kind: (*kind).into(),
            source: (*source).into(),
            options: options.iter().map(|option| (*option).into()).collect(),
        };
        self.rootfs = mounts.iter().map(mount).collect();
        self
    }
}

fn own_mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
    ])
}

const OVERLAY: (&str, &str, &[&str]) = (
    "overlay",
    "overlay",
    &["index=off", "workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"],
);

/// The "pause" container, as CRI writes it.
fn sandbox() -> Case {
    let mut mounts = own_mounts();
    let mut case = Case {
        spec: Value::Null,
        rootfs: Vec::new(),
        pod: PodState::default(),
        facts: Facts::default(),
    };
    for (destination, source) in [("/dev/shm", SHM), ("/etc/resolv.conf", RESOLV)] {
        mounts.as_array_mut().unwrap().push(json!({
            "destination": destination, "type": "bind", "source": source,
            "options": ["rbind", "ro", "nosuid", "nodev", "noexec"],
        }));
    }
    case.spec = json!({
        "ociVersion": "1.1.0",
        "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 65535, "gid": 65535},
            "oomScoreAdj": -998, "noNewPrivileges": true},
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "web-0",
        "mounts": mounts,
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": "sb",
            "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/default_web-0_u",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        },
        "linux": {
            "cgroupsPath": "/kubepods/burstable/podu/sb",
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"},
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": "/var/run/netns/cni-1"},
            ],
            "maskedPaths": ["/proc/kcore"],
        },
        "future": {"kept": true},
    });
    case.rootfs(&[OVERLAY]).source(SHM, Source::Tmpfs(TMPFS)).source(RESOLV, Source::File)
}

/// A container of the same Pod.
fn container() -> Case {
    let mut case = sandbox();
    case.spec["mounts"] = own_mounts();
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro", "nsdelegate"]});
    case.spec["mounts"].as_array_mut().unwrap().push(cgroup);
    case.spec["hostname"].take();
    case.spec["linux"]["sysctl"].take();
    case.spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "ipc", "path": "/proc/77/ns/ipc"},
        {"type": "uts", "path": "/proc/77/ns/uts"}, {"type": "mount"},
        {"type": "network", "path": "/proc/77/ns/net"}, {"type": "cgroup"},
    ]);
    case.pod =
        PodState { opened: true, shm: Some(SHM.into()), pids: vec![77], disks: BTreeSet::new() };
    case.bind("/dev/shm", SHM, &["rbind", "rprivate", "rw"]).bind(
        "/etc/resolv.conf",
        RESOLV,
        &["rbind", "rprivate", "rw"],
    )
}

fn mount<'a>(plan: &'a ContainerPlan, destination: &str) -> &'a Value {
    let mut mounts = plan.spec["mounts"].as_array().unwrap().iter();
    mounts.find(|mount| mount["destination"] == destination).expect("the mount is there")
}

#[test]
fn the_first_container_shapes_the_guest() {
    let plan = sandbox().plan().unwrap();
    let guest = plan.guest.as_ref().unwrap();
    assert_eq!(guest.hostname.as_deref(), Some("web-0"));
    assert_eq!(guest.sysctls["kernel.shm_rmid_forced"], "1");
    assert_eq!(guest.shm, Some((SHM.into(), 64 << 20)));
    assert_eq!(mount(&plan, "/dev/shm")["source"], "/dev/shm");
    assert_eq!(plan.shared.len(), 1, "the root file system: {:?}", plan.shared);
    assert_eq!(plan.volumes.len(), 1, "resolv.conf: {:?}", plan.volumes);
    assert_eq!(plan.rootfs.path(), "/run/bulkhead/share/c1/rootfs");
    assert_eq!(mount(&plan, "/etc/resolv.conf")["source"], shared_at(&plan.volumes[0].name));
    assert_eq!(plan.spec["linux"].get("sysctl"), None);
    assert_eq!(plan.spec.get("hostname"), None);
    let namespaces = json!([{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]);
    assert_eq!(plan.spec["linux"]["namespaces"], namespaces);
    assert!(!plan.shared_pid);
}

#[test]
fn no_path_of_the_host_reaches_the_guest() {
    let mut case = container()
        .bind("/data", "/srv/data", &["rbind", "rslave", "ro", "Z"])
        .source("/srv/data", Source::Directory)
        .bind("/cache", MEMORY, &["rbind", "rprivate", "rw"])
        .source(MEMORY, Source::Tmpfs(TMPFS));
    case.spec["hooks"] = json!({"prestart": [{"path": "/usr/bin/host-hook"}]});
    case.spec["process"]["apparmorProfile"] = "cri-containerd.apparmor.d".into();
    case.spec["process"]["selinuxLabel"] = "system_u:system_r:container_t".into();
    case.spec["linux"]["mountLabel"] = "system_u".into();
    case.spec["linux"]["rootfsPropagation"] = "rslave".into();
    case.spec["linux"]["intelRdt"] = json!({"closID": "x"});
    case.spec["linux"]["resources"]["cpu"]["cpus"] = "4-7".into();
    case.spec["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 0}]);
    case.spec["root"]["path"] = "/run/containerd/x/rootfs".into();
    let plan = case.plan().unwrap();
    let text = plan.spec.to_string();
    for trace in [
        "/run/containerd",
        "/var/lib",
        "/srv",
        "/var/run",
        "/proc/77",
        "kubepods",
        "/var/log",
        "hook",
        "apparmor",
        "selinux",
        "system_u",
        "rslave",
        "closID",
        "4-7",
        "hugepage",
        "last-applied",
        "nsdelegate",
        "\"Z\"",
    ] {
        assert!(!text.contains(trace), "{trace} in {text}");
    }
    assert_eq!(plan.spec["future"], json!({"kept": true}));
    assert_eq!(plan.spec["linux"]["resources"]["cpu"], json!({"shares": 2}));
    assert_eq!(plan.spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(plan.spec["root"], json!({"path": "rootfs", "readonly": true}));
    assert_eq!(plan.spec["annotations"].as_object().unwrap().len(), 2);
    assert_eq!(plan.left_out, ["hooks, which are programs of the host"]);
    assert_eq!(plan.guest, None);
}

#[test]
fn what_the_host_has_below_a_read_only_volume_stays_writable() {
    let options = |option: &str, source: &str, found| {
        let mut case = container().bind("/v", source, &["rbind", option]).source(source, found);
        case.facts.nesting.insert(source.into());
        mount(&case.plan().unwrap(), "/v")["options"].clone()
    };
    assert_eq!(options("ro", "/srv", Source::Directory), json!(["rbind", "rprivate"]));
    assert_eq!(options("rro", "/srv", Source::Directory), json!(["rbind", "rprivate", "ro"]));
    let in_guest = Source::Tmpfs(TMPFS);
    assert_eq!(options("ro", MEMORY, in_guest), json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn volumes_are_shared_as_they_were_asked_for() {
    let how = |read_only, propagation, recursive| Bind { recursive, read_only, propagation };
    for (options, wanted, guest) in [
        (
            &["rbind", "rprivate", "rw"][..],
            how(ReadOnly::No, Propagation::Private, true),
            json!(["rbind", "rprivate", "rw"]),
        ),
        (
            &["rbind", "rslave", "ro"],
            how(ReadOnly::Top, Propagation::Slave, true),
            json!(["rbind", "rprivate", "ro"]),
        ),
        (
            &["rbind", "rprivate", "rro", "nosuid"],
            how(ReadOnly::All, Propagation::Private, true),
            json!(["rbind", "rprivate", "ro", "nosuid"]),
        ),
        (&["bind"], how(ReadOnly::No, Propagation::Private, false), json!(["rbind", "rprivate"])),
    ] {
        for source in [Source::Directory, Source::File, Source::Tmpfs(TMPFS)] {
            let case = container().bind("/v", SECRET, options).source(SECRET, source);
            let plan = case.plan().unwrap();
            let last = plan.volumes.last().unwrap();
            assert_eq!((last.source.to_str(), last.how), (Some(SECRET), wanted), "{options:?}");
            let told = mount(&plan, "/v");
            assert_eq!(told["options"], guest);
            assert_eq!(told["source"], shared_at(&last.name));
            assert!(told["source"].as_str().unwrap().starts_with("/run/bulkhead/share/.volumes/v"));
        }
    }
}

#[test]
fn an_empty_dir_is_one_mount_for_those_who_write_and_those_who_read() {
    const CACHE: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache";
    let plan = |options: &[&str]| {
        container().bind("/v", CACHE, options).source(CACHE, Source::Directory).plan().unwrap()
    };
    let (writes, mut reads) = (plan(&["rbind", "rw"]), plan(&["rbind", "ro"]));
    assert_eq!(writes.volumes.last().unwrap().how, reads.volumes.last().unwrap().how);
    assert_eq!(mount(&reads, "/v")["options"], json!(["rbind", "rprivate", "ro"]));
    let asked = reads.volumes.last().unwrap().name.clone();
    rename(&mut reads.spec, &[("other".into(), "no".into()), (asked, "first".into())]);
    assert_eq!(mount(&reads, "/v")["source"], "/run/bulkhead/share/.volumes/first");
    assert_ne!(mount(&reads, "/etc/resolv.conf")["source"], "/run/bulkhead/share/.volumes/first");
}

#[test]
fn a_memory_volume_is_the_guests_and_one_for_the_pod() {
    let facts = Tmpfs { size: 32 << 20, mode: 0o2777, uid: 0, gid: 1000 };
    let case = container()
        .bind("/a", MEMORY, &["rbind", "rprivate", "rw"])
        .bind("/b", MEMORY, &["rbind", "rprivate", "ro"])
        .source(MEMORY, Source::Tmpfs(facts));
    let plan = case.plan().unwrap();
    assert_eq!(plan.storages.len(), 1);
    let storage = &plan.storages[0];
    let tmpfs = storage.tmpfs();
    assert_eq!((tmpfs.size, tmpfs.mode, tmpfs.uid, tmpfs.gid), (32 << 20, 0o2777, 0, 1000));
    assert!(storage.mount_point.starts_with("/run/bulkhead/ephemeral/"));
    assert_eq!(mount(&plan, "/a")["source"], storage.mount_point.as_str());
    assert_eq!(mount(&plan, "/b")["options"], json!(["rbind", "rprivate", "ro"]));
    let other = container().bind("/x", MEMORY, &["rbind"]).source(MEMORY, Source::Tmpfs(facts));
    assert_eq!(other.plan().unwrap().storages, plan.storages, "the same in every container");

    // On /dev/shm it is still the volume, not the Pod's.
    for mut case in [container(), sandbox()] {
        case.spec["mounts"] = json!([]);
        let case = case.bind("/dev/shm", MEMORY, &["rbind"]).source(MEMORY, Source::Tmpfs(facts));
        let plan = case.plan().unwrap();
        assert_eq!(mount(&plan, "/dev/shm")["source"], plan.storages[0].mount_point.as_str());
    }
}

#[test]
fn what_no_guest_can_have_is_refused_by_name() {
    let bind = |source, what, options: &[&str]| {
        container().bind("/v", source, options).source(source, what).refused()
    };
    for (what, part) in [
        (Source::Socket, "a socket or fifo of the host"),
        (Source::Fifo, "a socket or fifo of the host"),
        (Source::Huge, "huge pages"),
        (Source::MemoryPart, "a subPath of a memory emptyDir"),
        (Source::Character { major: 10, minor: 232 }, "no such device"),
        (Source::Block, "mount it there"),
    ] {
        let (kind, text) = bind("/run/thing", what, &["rbind"]);
        assert_eq!(kind, Kind::Unimplemented, "{text}");
        assert!(
            text.contains("/v") && text.contains("/run/thing") && text.contains(part),
            "{text}"
        );
    }
    let (kind, text) = bind("/v", Source::Directory, &["rbind", "rshared"]);
    assert_eq!(kind, Kind::Unimplemented);
    assert!(text.contains("mountPropagation"), "{text}");
    let (_, text) = bind("/dev", Source::Directory, &["rbind"]);
    assert!(text.contains("devices"), "{text}");
    let (kind, text) = bind("/gone", Source::Missing, &["rbind"]);
    assert_eq!(kind, Kind::InvalidArgument);
    assert_eq!(text, "mount /v: the host has no /gone");

    for (kind, wanted) in [("pid", "hostPID"), ("ipc", "hostIPC")] {
        let mut case = sandbox();
        let namespaces = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        let (code, text) = case.refused();
        assert_eq!(code, Kind::Unimplemented);
        assert!(text.starts_with("linux.namespaces: ") && text.contains(wanted), "{text}");
    }
    let mut case = container();
    case.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    assert!(case.refused().1.contains("hostUsers"));
    let mut case = container();
    case.spec["mounts"][0]["destination"] = "/a/../../etc".into();
    assert_eq!(case.refused().0, Kind::InvalidArgument);
    let mut case = container();
    case.spec["mounts"][0]["type"] = "nfs".into();
    assert!(case.refused().1.starts_with("mount /proc: a guest cannot mount type \"nfs\""));
}

#[test]
fn a_process_namespace_is_shared_within_the_pod_only() {
    for (path, shared) in [("/proc/77/ns/pid", Some(true)), ("/proc/1/ns/pid", None)] {
        let mut case = container();
        case.spec["linux"]["namespaces"][0]["path"] = path.into();
        assert_eq!(case.plan().ok().map(|plan| plan.shared_pid), shared, "{path}");
    }
}

#[test]
fn null_is_the_guests_own() {
    let null = Source::Character { major: 1, minor: 3 };
    let case = container().bind("/etc/empty", "/dev/null", &["bind"]).source("/dev/null", null);
    let plan = case.plan().unwrap();
    assert_eq!(mount(&plan, "/etc/empty")["source"], "/dev/null");
}

fn device(kind: &str, path: &str, major: u64, minor: u64) -> Value {
    json!({"type": kind, "path": path, "major": major, "minor": minor, "fileMode": 0o660, "gid": 6})
}

#[test]
fn devices_are_sorted() {
    let mut case = container();
    case.facts.blocks.insert((8, 16), "/dev/sdb".into());
    case.spec["linux"]["devices"] =
        json!([device("c", "/dev/fuse", 10, 229), device("b", "/dev/xvda", 8, 16)]);
    for (access, read_only) in [("rwm", false), ("rm", true)] {
        case.spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": access},
        ]);
        let plan = case.plan().unwrap();
        assert_eq!(plan.spec["linux"]["devices"].as_array().unwrap().len(), 1);
        let [disk] = &plan.disks[..] else { panic!("{:?}", plan.disks) };
        assert_eq!((disk.path.as_path(), disk.read_only), (Path::new("/dev/sdb"), read_only));
        assert!(disk.id.len() <= 20 && disk.id.bytes().all(|b| b.is_ascii_alphanumeric()));
        let node = &plan.devices[0];
        assert_eq!((node.serial.as_str(), node.path.as_str()), (disk.id.as_str(), "/dev/xvda"));
        assert_eq!((node.mode, node.gid, node.read_only), (0o660, 6, read_only));
    }
    case.spec["linux"]["devices"] = json!([device("b", "/dev/xvda", 8, 32)]);
    assert_eq!(case.refused().0, Kind::InvalidArgument);
    case.spec["linux"]["devices"] = json!([device("c", "/dev/kvm", 10, 232)]);
    let (kind, text) = case.refused();
    assert_eq!(kind, Kind::Unimplemented);
    assert!(text.starts_with("linux.devices /dev/kvm: character device 10:232"), "{text}");
}

#[test]
fn a_privileged_container_gets_none_of_the_hosts_devices() {
    let mut case = container();
    case.facts.blocks.insert((8, 16), "/dev/sdb".into());
    case.spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let disk = device("b", "/dev/sdb", 8, 16);
    case.spec["linux"]["devices"] = json!([disk]);
    assert_eq!(case.plan().unwrap().disks.len(), 1, "a volume of its own stays");
    case.spec["linux"]["devices"] =
        json!([disk, device("c", "/dev/mem", 1, 1), device("c", "/dev/null", 1, 3),]);
    let plan = case.plan().unwrap();
    assert!(plan.disks.is_empty());
    assert_eq!(plan.left_out, ["device /dev/sdb of the host", "device /dev/mem of the host"]);
    assert_eq!(plan.spec["linux"]["devices"][0]["path"], "/dev/null");
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
    let layers = plan.rootfs.layers();
    let serials: Vec<_> = layers.lower.iter().map(|disk| &disk.serial).collect();
    assert_eq!(serials, [&plan.disks[0].id, &plan.disks[1].id]);
    assert!(
        layers.lower.iter().all(|d| d.fs_type == "erofs" && d.read_only && d.options.is_empty())
    );
    assert_eq!(
        (layers.upper.serial.as_str(), layers.upper.fs_type.as_str()),
        (plan.disks[2].id.as_str(), "ext4")
    );
    assert!(plan.shared.iter().all(|shared| shared.name != "rootfs"));

    let plan = erofs(false).plan().unwrap();
    assert_eq!((plan.rootfs.layers().lower.len(), plan.disks.len()), (1, 1));
    assert!(plan.rootfs.layers().upper.is_none());
}

#[test]
fn one_image_is_a_layer_or_a_disk_of_its_own() {
    let case = container().source("/s/1/layer.erofs", Source::File);
    let plan = case.rootfs(&[("erofs", "/s/1/layer.erofs", &["ro", "loop"])]).plan().unwrap();
    assert_eq!(plan.rootfs.layers().lower.len(), 1);
    let case = container().source("/dev/mapper/snap-7", Source::Block);
    let plan = case.rootfs(&[("xfs", "/dev/mapper/snap-7", &["nouuid"])]).plan().unwrap();
    assert_eq!(plan.rootfs.path(), "/run/bulkhead/disks/c1");
    let storage = &plan.storages[0];
    assert_eq!(storage.mount_point, "/run/bulkhead/disks/c1");
    assert_eq!((storage.disk().fs_type.as_str(), storage.disk().read_only), ("xfs", false));
    assert_eq!(storage.disk().options, ["nouuid"]);
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
        assert!(!plan.rootfs.overlay);
        assert_eq!(plan.spec["root"]["path"], "rootfs");
    }
}
