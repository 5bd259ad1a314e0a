//! The host's config.json, made to fit the guest and libcontainer.

use std::collections::BTreeMap;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxResources, Process, Spec};
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result, invalid};

/// What containers without a PATH get, as other engines give it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a container goes in this guest.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: String,
    /// The process id namespace to join; without one it gets its own.
    pub(crate) pid_namespace: Option<String>,
    pub(crate) terminal: bool,
    /// Device nodes to add, as `linux.devices` has them.
    pub(crate) devices: Vec<Value>,
}

/// A specification that libcontainer takes.
#[derive(Debug)]
pub(crate) struct Fitted {
    /// The config.json.
    pub(crate) json: Vec<u8>,
    pub(crate) spec: Spec,
    /// The limits: the agent sets them, libcontainer does not.
    pub(crate) resources: LinuxResources,
    /// Sysctls of the namespaces that are the guest's own, which libcontainer does not touch.
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// Fits the host's `config` to `place`.
pub(crate) fn fit(config: &[u8], place: &Place<'_>) -> Result<Fitted> {
    let mut spec = object("spec", config)?;
    spec.remove("hooks");
    // The guest has the Pod's.
    spec.remove("hostname");
    spec.remove("domainname");
    let read_only = spec.get("root").and_then(|root| root.get("readonly")).cloned();
    let root = json!({ "path": place.rootfs, "readonly": read_only.unwrap_or(Value::Bool(false)) });
    spec.insert("root".into(), root);
    give_dev(&mut spec)?;
    let process = spec.get_mut("process").and_then(Value::as_object_mut);
    fit_process(process.ok_or_else(|| invalid("spec has no process"))?, place.terminal);
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    let linux = linux.as_object_mut().ok_or_else(|| invalid("spec.linux is no object"))?;
    let resources = linux.remove("resources").unwrap_or_else(|| json!({}));
    let sysctls = sysctls(linux)?;
    fit_linux(linux, place)?;
    let resources = serde_json::from_value(resources)
        .map_err(|error| invalid(format!("spec.linux.resources: {error}")))?;
    let json = Value::Object(spec).to_string().into_bytes();
    let spec = serde_json::from_slice(&json)
        .map_err(|error| invalid(format!("spec is no OCI runtime specification: {error}")))?;
    Ok(Fitted { json, spec, resources, sysctls })
}

/// Fits an exec's `process` object.
pub(crate) fn fit_exec(process: &[u8], terminal: bool) -> Result<(Map<String, Value>, Process)> {
    let mut json = object("spec", process)?;
    fit_process(&mut json, terminal);
    let parsed = serde_json::from_value(Value::Object(json.clone()))
        .map_err(|error| invalid(format!("spec is no OCI process object: {error}")))?;
    Ok((json, parsed))
}

fn object(what: &str, json: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(json)
        .map_err(|error| invalid(format!("{what} is no JSON object: {error}")))
}

fn fit_process(process: &mut Map<String, Value>, terminal: bool) {
    process.insert("terminal".into(), Value::Bool(terminal));
    // The guest's kernel has neither.
    process.remove("apparmorProfile");
    process.remove("selinuxLabel");
    // To libcontainer, present and false is not absent: it then loads seccomp's filter when
    // the capability for it is gone.
    if process.get("noNewPrivileges") == Some(&Value::Bool(false)) {
        process.remove("noNewPrivileges");
    }
    let env = process.entry("env").or_insert_with(|| json!([]));
    if let Some(env) = env.as_array_mut() {
        let is_path = |v: &Value| v.as_str().is_some_and(|v| v.starts_with("PATH="));
        if !env.iter().any(is_path) {
            env.push(DEFAULT_PATH.into());
        }
    }
}

/// A container without a mount on `/dev` gets one of its own: its devices are made there, and its
/// root file system, which may be the host's, is no place for them.
fn give_dev(spec: &mut Map<String, Value>) -> Result<()> {
    let mounts = spec.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts.as_array_mut().ok_or_else(|| invalid("spec.mounts is no list"))?;
    if !mounts.iter().any(|mount| mount.get("destination").is_some_and(|at| at == "/dev")) {
        let options = ["nosuid", "strictatime", "mode=755", "size=65536k"];
        let dev = json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options,
        });
        mounts.insert(0, dev);
    }
    Ok(())
}

/// Takes the sysctls out; others than those of the network and IPC namespaces are refused, as
/// other engines do.
fn sysctls(linux: &mut Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let sysctls = match linux.remove("sysctl") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(sysctls) => serde_json::from_value::<BTreeMap<String, String>>(sysctls),
    };
    let sysctls = sysctls.map_err(|error| invalid(format!("spec.linux.sysctl: {error}")))?;
    for key in sysctls.keys() {
        let dotted = key.replace('/', ".");
        let ipc = ["fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm"];
        if !dotted.starts_with("net.") && !ipc.iter().any(|prefix| dotted.starts_with(prefix)) {
            return Err(invalid(format!("sysctl {key:?} belongs to no namespace of a container")));
        }
    }
    Ok(sysctls)
}

fn fit_linux(linux: &mut Map<String, Value>, place: &Place<'_>) -> Result<()> {
    linux.insert("cgroupsPath".into(), place.cgroup.clone().into());
    linux.remove("mountLabel");
    linux.remove("intelRdt");
    // Recursive or not is one to libcontainer, which does not know the words for it.
    if let Some(propagation) = linux.get("rootfsPropagation").and_then(Value::as_str) {
        let plain = match propagation {
            "rshared" => "shared",
            "rslave" => "slave",
            "rprivate" => "private",
            "runbindable" => "unbindable",
            other => other,
        };
        linux.insert("rootfsPropagation".into(), plain.to_owned().into());
    }
    if let Some(seccomp) = linux.get_mut("seccomp").and_then(Value::as_object_mut) {
        // Nobody listens in the guest.
        seccomp.remove("listenerPath");
    }
    let mut namespaces = match linux.remove("namespaces") {
        Some(Value::Array(namespaces)) => namespaces,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => return Err(invalid("spec.linux.namespaces is no list")),
    };
    let kind = |namespace: &Value| namespace.get("type").and_then(Value::as_str).map(String::from);
    if namespaces.iter().any(|namespace| kind(namespace).as_deref() == Some("user")) {
        return Err(Error::new(
            Kind::Unimplemented,
            "spec asks for a user namespace; containers of this guest cannot have one",
        ));
    }
    // The Pod's network, IPC and UTS namespaces are the guest's own.
    let own = ["network", "ipc", "uts", "pid", "mount"];
    namespaces.retain(|namespace| kind(namespace).is_some_and(|kind| !own.contains(&&*kind)));
    for namespace in &mut namespaces {
        // A path of the host.
        namespace.as_object_mut().map(|namespace| namespace.remove("path"));
    }
    namespaces.push(json!({ "type": "mount" }));
    namespaces.push(match &place.pid_namespace {
        Some(path) => json!({ "type": "pid", "path": path }),
        None => json!({ "type": "pid" }),
    });
    linux.insert("namespaces".into(), namespaces.into());
    if !place.devices.is_empty() {
        let devices = linux.entry("devices").or_insert_with(|| json!([]));
        let devices = devices.as_array_mut();
        let devices = devices.ok_or_else(|| invalid("spec.linux.devices is no list"))?;
        devices.extend(place.devices.iter().cloned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rootfs: &Path) -> Place<'_> {
        Place {
            rootfs,
            cgroup: "/bulkhead/a".into(),
            pid_namespace: None,
            terminal: false,
            devices: vec![json!({"path": "/dev/xvda", "type": "b", "major": 254, "minor": 0})],
        }
    }

    fn config() -> Value {
        json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "hooks": {"prestart": []},
            "hostname": "x",
            "process": {
                "cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "terminal": true,
                "noNewPrivileges": false, "apparmorProfile": "x", "env": ["A=b"],
            },
            "linux": {
                "resources": {"pids": {"limit": 5}},
                "mountLabel": "x",
                "sysctl": {"net.core.somaxconn": "9"},
                "rootfsPropagation": "rslave",
                "namespaces": [
                    {"type": "network", "path": "/var/run/netns/x"}, {"type": "ipc"},
                    {"type": "cgroup"}, {"type": "pid", "path": "/proc/7/ns/pid"},
                ],
            },
        })
    }

    #[test]
    fn the_host_leaves_no_trace() {
        let place = place(Path::new("/run/bulkhead/share/a"));
        let fitted = fit(config().to_string().as_bytes(), &place).unwrap();
        let json: Value = serde_json::from_slice(&fitted.json).unwrap();
        assert_eq!(json["root"], json!({"path": "/run/bulkhead/share/a", "readonly": true}));
        assert_eq!((json.get("hooks"), json.get("hostname")), (None, None));
        assert_eq!(json["linux"].get("sysctl"), None);
        assert_eq!(fitted.sysctls["net.core.somaxconn"], "9");
        assert_eq!(json["process"]["terminal"], false);
        assert_eq!(json["process"].get("noNewPrivileges"), None);
        assert_eq!(json["process"]["env"], json!(["A=b", DEFAULT_PATH]));
        assert_eq!(json["linux"].get("resources"), None);
        assert_eq!(json["mounts"][0]["destination"], "/dev", "devices have a place of their own");
        let namespaces = json!([{"type": "cgroup"}, {"type": "mount"}, {"type": "pid"}]);
        assert_eq!(json["linux"]["namespaces"], namespaces);
        assert_eq!(json["linux"]["devices"][0]["path"], "/dev/xvda");
        assert_eq!(json["linux"]["cgroupsPath"], "/bulkhead/a");
        assert_eq!(json["linux"]["rootfsPropagation"], "slave");
        assert_eq!(fitted.resources.pids().as_ref().map(|pids| pids.limit()), Some(5));
    }

    #[test]
    fn a_shared_process_namespace_is_joined() {
        let mut place = place(Path::new("/r"));
        place.pid_namespace = Some("/proc/9/ns/pid".into());
        let fitted = fit(config().to_string().as_bytes(), &place).unwrap();
        let json: Value = serde_json::from_slice(&fitted.json).unwrap();
        assert_eq!(
            json["linux"]["namespaces"][2],
            json!({"type": "pid", "path": "/proc/9/ns/pid"})
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let place = place(Path::new("/r"));
        let mut user = config();
        user["linux"]["namespaces"] = json!([{"type": "user"}]);
        let error = fit(user.to_string().as_bytes(), &place).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        let mut core = config();
        core["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"});
        let error = fit(core.to_string().as_bytes(), &place).unwrap_err().to_string();
        assert_eq!(error, "sysctl \"kernel.core_pattern\" belongs to no namespace of a container");
        let error = fit(b"{}", &place).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (Kind::InvalidArgument, "spec has no process")
        );
        assert_eq!(fit(b"[1]", &place).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
