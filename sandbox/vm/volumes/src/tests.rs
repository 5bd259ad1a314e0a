//! Plans of configurations as containerd 1.7 to 2.2 writes them.

mod devices;
mod mounts;
mod rootfs;

use std::collections::BTreeSet;
use std::path::Path;

use sandbox_core::{Classified, Id, Kind, RootfsMount};
use sandbox_host::{Bind, Propagation, ReadOnly};
use serde_json::{Value, json};
use vm_driver::Capabilities;

use crate::container::plan;
use crate::error::PlanError;
use crate::facts::{Facts, Source, Tmpfs};
use crate::names::{rename, shared_at};
use crate::plan::{ContainerPlan, PodState, Request, Rootfs, StorageSource};

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
    assert_eq!(plan.rootfs, Rootfs::Path("/run/bulkhead/share/c1/rootfs".into()));
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
    assert!(plan.left_out.is_empty(), "{:?}", plan.left_out);
    assert_eq!(plan.guest, None);
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

    for list in ["createContainer", "startContainer"] {
        let mut case = container();
        case.spec["hooks"] = json!({list: [{"path": "/usr/bin/cdi"}]});
        let (code, text) = case.refused();
        assert_eq!(code, Kind::Unimplemented);
        assert!(text.starts_with(&format!("hooks.{list}: /usr/bin/cdi would run")), "{text}");
    }
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
