//! What has to change in a container's configuration before runsc reads it. Pure: JSON in, JSON
//! out, so that fields which this project does not know stay as they are.

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use sandbox_core::annotation::{CONTAINER_TYPE, SANDBOX_ID};
use serde_json::{Map, Value};

/// Prefix of the annotations that change how runsc runs a Pod.
const GVISOR: &str = "dev.gvisor.";
/// CRI-O's twins of the CRI annotations, which runsc reads as well.
const CRIO: [&str; 2] = ["io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"];
/// The name of the hint by which runsc shares `/dev/shm` between the containers of a Pod.
const SHM_HINT: &str = "dev.gvisor.spec.mount.bulkhead-dev-shm.";
const SHM: &str = "/dev/shm";

/// Where a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement<'a> {
    /// The sandbox is launched with it; its `/dev/shm` holds `shm_size` bytes.
    First { shm_size: Option<u64> },
    /// It joins the sandbox of that id of runsc's, whose `/dev/shm` came from `shm`.
    Joins { sandbox: &'a str, shm: Option<&'a str> },
}

/// The configuration that runsc gets. `allow` lists the `dev.gvisor.*` annotations that a Pod may
/// set; `terminal` is what containerd asked for.
pub(crate) fn edit(
    given: &Value,
    id: &str,
    placement: Placement<'_>,
    allow: &[String],
    terminal: bool,
) -> Value {
    let mut spec = given.clone();
    strip(annotations(&mut spec), allow);
    place(annotations(&mut spec), id, placement);
    share_shm(&mut spec, placement);
    // The Pod's group is the shim's to make; runsc would add an empty one per container.
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        linux.remove("cgroupsPath");
    }
    if let Some(process) = spec.get_mut("process").and_then(Value::as_object_mut) {
        process.insert("terminal".into(), terminal.into());
        if !terminal {
            process.remove("consoleSize");
        }
    }
    spec
}

/// Whether a container's process namespace is one that others use too: it names one, or has none of
/// its own.
pub(crate) fn shares_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own = namespaces.into_iter().flatten().any(|namespace| {
        let path = namespace.path().as_ref();
        namespace.typ() == LinuxNamespaceType::Pid
            && path.is_none_or(|path| path.as_os_str().is_empty())
    });
    !own
}

/// The directory that stands behind the Pod's `/dev/shm`.
pub(crate) fn shm_source(spec: &Value) -> Option<&str> {
    let mounts = spec.get("mounts")?.as_array()?;
    mounts.iter().find(|m| is_shm(m) && is_bind(m))?.get("source")?.as_str()
}

fn annotations(spec: &mut Value) -> &mut Map<String, Value> {
    if !spec["annotations"].is_object() {
        spec["annotations"] = Value::Object(Map::new());
    }
    spec["annotations"].as_object_mut().unwrap_or_else(|| unreachable!("set to an object above"))
}

/// Removes what a Pod may not set.
fn strip(annotations: &mut Map<String, Value>, allow: &[String]) {
    annotations.retain(|key, _| {
        !CRIO.contains(&key.as_str())
            && (!key.starts_with(GVISOR) || allow.iter().any(|p| matches(p, key)))
    });
}

fn matches(pattern: &str, key: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => key.starts_with(start),
        None => pattern == key,
    }
}

/// Names the sandbox that the container belongs to.
fn place(annotations: &mut Map<String, Value>, id: &str, placement: Placement<'_>) {
    let (kind, sandbox) = match placement {
        Placement::First { .. } => ("sandbox", id),
        Placement::Joins { sandbox, .. } => ("container", sandbox),
    };
    annotations.insert(CONTAINER_TYPE.into(), kind.into());
    annotations.insert(SANDBOX_ID.into(), sandbox.into());
}

fn is_shm(mount: &Value) -> bool {
    mount["destination"].as_str().is_some_and(|d| d.trim_end_matches('/') == SHM)
}

/// A bind mount, which runtimes also know by its option.
fn is_bind(mount: &Value) -> bool {
    let option = |o: &Value| o == "bind" || o == "rbind";
    mount["type"] == "bind" || mount["options"].as_array().is_some_and(|all| all.iter().any(option))
}

/// Turns the Pod's `/dev/shm` into one tmpfs inside the sandbox, which its containers share;
/// shared memory then needs no host file, and all of them see the same.
fn share_shm(spec: &mut Value, placement: Placement<'_>) {
    let Some(source) = shm_source(spec).map(str::to_owned) else { return };
    match placement {
        // Some other directory, as a volume that a Pod put on /dev/shm, stays what it is.
        Placement::Joins { shm, .. } if shm != Some(&source) => return,
        Placement::Joins { .. } => {}
        Placement::First { shm_size } => {
            let size = shm_size.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
            let options = format!("rw,mode=1777{size}");
            let hints = [("source", source.as_str()), ("type", "tmpfs"), ("share", "pod")];
            for (field, value) in hints.into_iter().chain([("options", options.as_str())]) {
                annotations(spec).insert(format!("{SHM_HINT}{field}"), value.into());
            }
        }
    }
    let Some(mounts) = spec["mounts"].as_array_mut() else { return };
    // A second mount on the same place would hide the shared one.
    mounts.retain(|m| !is_shm(m) || is_bind(m));
    for mount in mounts.iter_mut().filter(|m| is_shm(m)) {
        mount["type"] = "tmpfs".into();
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|o| o != "bind" && o != "rbind");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD_SHM: &str = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/sb/shm";

    fn given() -> Value {
        json!({
            "ociVersion": "1.1.0",
            "process": {"args": ["/pause"], "terminal": true, "consoleSize": {"height": 1}},
            "mounts": [
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
                {"destination": "/dev/shm", "type": "bind", "source": POD_SHM,
                 "options": ["rbind", "ro"]},
                {"destination": "/data", "type": "bind", "source": "/v", "options": ["rbind"]},
            ],
            "annotations": {
                "dev.gvisor.flag.network": "host",
                "dev.gvisor.spec.mount.x.type": "tmpfs",
                "dev.gvisor.internal.seccomp.y": "z",
                "io.kubernetes.cri-o.SandboxID": "other",
                "io.kubernetes.cri.container-type": "sandbox",
                "mine": "kept",
            },
            "future": {"field": [1, 2]},
        })
    }

    #[test]
    fn a_pod_cannot_change_its_isolation() {
        let out = edit(&given(), "sb", Placement::First { shm_size: None }, &[], false);
        let mut keys: Vec<_> = out["annotations"].as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(
            keys,
            [
                "dev.gvisor.spec.mount.bulkhead-dev-shm.options",
                "dev.gvisor.spec.mount.bulkhead-dev-shm.share",
                "dev.gvisor.spec.mount.bulkhead-dev-shm.source",
                "dev.gvisor.spec.mount.bulkhead-dev-shm.type",
                "io.kubernetes.cri.container-type",
                "io.kubernetes.cri.sandbox-id",
                "mine",
            ]
        );
    }

    #[test]
    fn the_admin_may_admit_annotations() {
        let allow = ["dev.gvisor.spec.mount.*".to_owned(), "dev.gvisor.flag.network".to_owned()];
        let out = edit(&given(), "sb", Placement::First { shm_size: None }, &allow, false);
        assert_eq!(out["annotations"]["dev.gvisor.spec.mount.x.type"], "tmpfs");
        assert_eq!(out["annotations"]["dev.gvisor.flag.network"], "host");
        assert!(out["annotations"].get("dev.gvisor.internal.seccomp.y").is_none());
        let exact = ["dev.gvisor.flag.net".to_owned()];
        let out = edit(&given(), "sb", Placement::First { shm_size: None }, &exact, false);
        assert!(out["annotations"].get("dev.gvisor.flag.network").is_none());
    }

    #[test]
    fn the_pod_shares_one_dev_shm() {
        let given = given();
        assert_eq!(shm_source(&given), Some(POD_SHM));
        let first = edit(&given, "sb", Placement::First { shm_size: None }, &[], false);
        assert_eq!(first["annotations"][&format!("{SHM_HINT}source")], POD_SHM);
        let joins = Placement::Joins { sandbox: "sb", shm: Some(POD_SHM) };
        let second = edit(&given, "ct", joins, &[], false);
        for spec in [&first, &second] {
            let mounts = spec["mounts"].as_array().unwrap();
            assert_eq!(mounts.len(), 2, "the duplicate is gone");
            assert_eq!(mounts[0]["type"], "tmpfs");
            assert_eq!(mounts[0]["source"], POD_SHM);
            assert_eq!(mounts[0]["options"], json!(["ro"]));
            assert_eq!(mounts[1]["options"], json!(["rbind"]), "volumes are left alone");
        }
        assert_eq!(second["annotations"][CONTAINER_TYPE], "container");
        assert_eq!(second["annotations"][SANDBOX_ID], "sb");
        assert!(second["annotations"].get(format!("{SHM_HINT}source")).is_none());
    }

    #[test]
    fn another_directory_on_dev_shm_stays() {
        let joins = Placement::Joins { sandbox: "sb", shm: Some("/other") };
        let out = edit(&given(), "ct", joins, &[], false);
        assert_eq!(out["mounts"], given()["mounts"]);
    }

    #[test]
    fn the_terminal_is_what_containerd_asked_for() {
        let out = edit(&given(), "sb", Placement::First { shm_size: None }, &[], false);
        assert_eq!(out["process"], json!({"args": ["/pause"], "terminal": false}));
        let out = edit(&given(), "sb", Placement::First { shm_size: None }, &[], true);
        assert_eq!(out["process"]["consoleSize"]["height"], 1);
        assert_eq!(out["future"], given()["future"]);
    }

    #[test]
    fn no_annotations_means_a_sandbox_of_its_own() {
        let bare = json!({"ociVersion": "1.1.0", "process": {"args": ["sh"]}});
        let out = edit(&bare, "c", Placement::First { shm_size: None }, &[], false);
        assert_eq!(out["annotations"][CONTAINER_TYPE], "sandbox");
        assert_eq!(out["annotations"][SANDBOX_ID], "c");
    }

    #[test]
    fn processes_are_shared_unless_the_container_has_a_namespace_of_its_own() {
        for (namespaces, shared) in [
            (json!([{"type": "pid"}, {"type": "ipc"}]), false),
            (json!([{"type": "pid", "path": ""}]), false),
            (json!([{"type": "pid", "path": "/proc/1/ns/pid"}]), true),
            (json!([{"type": "ipc"}]), true),
        ] {
            let spec = json!({"ociVersion": "1.1.0", "linux": {"namespaces": namespaces}});
            let spec = serde_json::from_value(spec).unwrap();
            assert_eq!(shares_pids(&spec), shared, "{namespaces}");
        }
    }
}
