//! Adapts the host's config.json to the guest and to libcontainer.

use std::collections::BTreeMap;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxResources, Process, Spec};
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result, invalid};

/// PATH for containers without one, the same as other engines'.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container gets in this guest.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: String,
    /// Path of the PID namespace to join; `None` for one of its own.
    pub(crate) pid_namespace: Option<String>,
    pub(crate) terminal: bool,
    /// Device nodes to add, as `linux.devices` has them.
    pub(crate) devices: Vec<Value>,
}

/// A specification for libcontainer.
#[derive(Debug)]
pub(crate) struct Adapted {
    /// The config.json.
    pub(crate) json: Vec<u8>,
    pub(crate) spec: Spec,
    /// The limits, which the agent sets instead of libcontainer.
    pub(crate) resources: LinuxResources,
    /// Sysctls of the guest's own namespaces, which libcontainer does not enter.
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// Adapts the host's `config` to `placement`.
pub(crate) fn adapt(config: &[u8], placement: &Placement<'_>) -> Result<Adapted> {
    let mut spec = object("spec", config)?;
    spec.remove("hooks");
    // The Pod's are the guest's own.
    spec.remove("hostname");
    spec.remove("domainname");
    let read_only = spec.get("root").and_then(|root| root.get("readonly")).cloned();
    let read_only = read_only.unwrap_or(Value::Bool(false));
    let root = json!({ "path": placement.rootfs, "readonly": read_only });
    spec.insert("root".into(), root);
    add_dev_mount(&mut spec)?;
    let process = spec.get_mut("process").and_then(Value::as_object_mut);
    let process = process.ok_or_else(|| invalid("spec has no process"))?;
    adapt_process(process, placement.terminal);
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    let linux = linux.as_object_mut().ok_or_else(|| invalid("spec.linux is not an object"))?;
    let resources = linux.remove("resources").unwrap_or_else(|| json!({}));
    let sysctls = sysctls(linux)?;
    adapt_linux(linux, placement)?;
    let resources = serde_json::from_value(resources)
        .map_err(|error| invalid(format!("spec.linux.resources: {error}")))?;
    let json = Value::Object(spec).to_string().into_bytes();
    let spec = serde_json::from_slice(&json)
        .map_err(|error| invalid(format!("spec is not an OCI runtime specification: {error}")))?;
    Ok(Adapted { json, spec, resources, sysctls })
}

/// Adapts an exec's `process` object.
pub(crate) fn adapt_exec(process: &[u8], terminal: bool) -> Result<(Map<String, Value>, Process)> {
    let mut json = object("spec", process)?;
    adapt_process(&mut json, terminal);
    let parsed = serde_json::from_value(Value::Object(json.clone()))
        .map_err(|error| invalid(format!("spec is not an OCI process object: {error}")))?;
    Ok((json, parsed))
}

fn object(what: &str, json: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(json)
        .map_err(|error| invalid(format!("{what} is not a JSON object: {error}")))
}

fn adapt_process(process: &mut Map<String, Value>, terminal: bool) {
    process.insert("terminal".into(), Value::Bool(terminal));
    // The guest's kernel has neither.
    process.remove("apparmorProfile");
    process.remove("selinuxLabel");
    // libcontainer treats false unlike absent: it then loads the seccomp filter only after it has
    // dropped the capability for that.
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

/// Adds a mount on `/dev` where there is none: device nodes are created there, and must not be
/// created in the root file system, which may be the host's.
fn add_dev_mount(spec: &mut Map<String, Value>) -> Result<()> {
    let mounts = spec.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts.as_array_mut().ok_or_else(|| invalid("spec.mounts is not a list"))?;
    if !mounts.iter().any(|mount| mount.get("destination").is_some_and(|at| at == "/dev")) {
        let options = ["nosuid", "strictatime", "mode=755", "size=65536k"];
        let dev = json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options,
        });
        mounts.insert(0, dev);
    }
    Ok(())
}

/// Takes the sysctls out. Those of other namespaces than the network's and the IPC namespace are
/// refused, as by other engines.
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

fn adapt_linux(linux: &mut Map<String, Value>, placement: &Placement<'_>) -> Result<()> {
    linux.insert("cgroupsPath".into(), placement.cgroup.clone().into());
    linux.remove("mountLabel");
    linux.remove("intelRdt");
    // libcontainer does not distinguish recursive propagation, and knows only the plain names.
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
        // The listener is on the host.
        seccomp.remove("listenerPath");
    }
    let mut namespaces = match linux.remove("namespaces") {
        Some(Value::Array(namespaces)) => namespaces,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => return Err(invalid("spec.linux.namespaces is not a list")),
    };
    let kind = |namespace: &Value| namespace.get("type").and_then(Value::as_str).map(String::from);
    if namespaces.iter().any(|namespace| kind(namespace).as_deref() == Some("user")) {
        return Err(Error::new(
            Kind::Unimplemented,
            "spec asks for a user namespace, which this guest does not support",
        ));
    }
    // The Pod's network, IPC and UTS namespaces are the guest's own.
    let own = ["network", "ipc", "uts", "pid", "mount"];
    namespaces.retain(|namespace| kind(namespace).is_some_and(|kind| !own.contains(&&*kind)));
    for namespace in &mut namespaces {
        // The path is one of the host.
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.remove("path");
        }
    }
    namespaces.push(json!({ "type": "mount" }));
    namespaces.push(match &placement.pid_namespace {
        Some(path) => json!({ "type": "pid", "path": path }),
        None => json!({ "type": "pid" }),
    });
    linux.insert("namespaces".into(), namespaces.into());
    if !placement.devices.is_empty() {
        let devices = linux.entry("devices").or_insert_with(|| json!([]));
        let devices = devices.as_array_mut();
        let devices = devices.ok_or_else(|| invalid("spec.linux.devices is not a list"))?;
        devices.extend(placement.devices.iter().cloned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(rootfs: &Path) -> Placement<'_> {
        Placement {
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
    fn nothing_of_the_host_remains() {
        let placement = placement(Path::new("/run/bulkhead/share/a"));
        let adapted = adapt(config().to_string().as_bytes(), &placement).unwrap();
        let json: Value = serde_json::from_slice(&adapted.json).unwrap();
        assert_eq!(json["root"], json!({"path": "/run/bulkhead/share/a", "readonly": true}));
        assert_eq!((json.get("hooks"), json.get("hostname")), (None, None));
        assert_eq!(json["linux"].get("sysctl"), None);
        assert_eq!(adapted.sysctls["net.core.somaxconn"], "9");
        assert_eq!(json["process"]["terminal"], false);
        assert_eq!(json["process"].get("noNewPrivileges"), None);
        assert_eq!(json["process"]["env"], json!(["A=b", DEFAULT_PATH]));
        assert_eq!(json["linux"].get("resources"), None);
        assert_eq!(json["mounts"][0]["destination"], "/dev", "device nodes need a mount");
        let namespaces = json!([{"type": "cgroup"}, {"type": "mount"}, {"type": "pid"}]);
        assert_eq!(json["linux"]["namespaces"], namespaces);
        assert_eq!(json["linux"]["devices"][0]["path"], "/dev/xvda");
        assert_eq!(json["linux"]["cgroupsPath"], "/bulkhead/a");
        assert_eq!(json["linux"]["rootfsPropagation"], "slave");
        assert_eq!(adapted.resources.pids().as_ref().map(|pids| pids.limit()), Some(5));
    }

    #[test]
    fn a_shared_pid_namespace_is_joined() {
        let mut placement = placement(Path::new("/r"));
        placement.pid_namespace = Some("/proc/9/ns/pid".into());
        let adapted = adapt(config().to_string().as_bytes(), &placement).unwrap();
        let json: Value = serde_json::from_slice(&adapted.json).unwrap();
        assert_eq!(
            json["linux"]["namespaces"][2],
            json!({"type": "pid", "path": "/proc/9/ns/pid"})
        );
    }

    #[test]
    fn unsupported_settings_are_refused() {
        let placement = placement(Path::new("/r"));
        let mut user = config();
        user["linux"]["namespaces"] = json!([{"type": "user"}]);
        let error = adapt(user.to_string().as_bytes(), &placement).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        let mut core = config();
        core["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"});
        let error = adapt(core.to_string().as_bytes(), &placement).unwrap_err().to_string();
        assert_eq!(error, "sysctl \"kernel.core_pattern\" belongs to no namespace of a container");
        let error = adapt(b"{}", &placement).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (Kind::InvalidArgument, "spec has no process")
        );
        assert_eq!(adapt(b"[1]", &placement).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
