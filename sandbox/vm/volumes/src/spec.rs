//! The other parts of a configuration that are about the host. This edits JSON, so that unknown
//! fields stay as they are.

use std::collections::BTreeMap;

use sandbox_core::annotation::{CONTAINER_TYPE, SANDBOX_ID};
use serde_json::{Map, Value, json};

use crate::error::{PlanError, invalid, unsupported};
use crate::plan::{ContainerPlan, GuestPlan, Request};

/// Annotations that stay: names of the container and its Pod.
const ANNOTATIONS: [&str; 7] = [
    CONTAINER_TYPE,
    SANDBOX_ID,
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-uid",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.image-name",
];

/// Namespaces that are the guest's own.
const GUESTS: [&str; 3] = ["network", "ipc", "uts"];

/// Edits the plan's copy of the configuration.
pub(crate) fn edit(plan: &mut ContainerPlan, request: &Request<'_>) -> Result<(), PlanError> {
    let spec =
        plan.spec.as_object_mut().ok_or_else(|| invalid("config.json", "this is no object"))?;
    refuse_hooks(spec)?;
    for key in ["hooks", "vm", "windows", "solaris", "zos", "domainname"] {
        spec.remove(key);
    }
    if let Some(annotations) = spec.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| ANNOTATIONS.contains(&key.as_str()));
    }
    if let Some(root) = spec.get_mut("root").and_then(Value::as_object_mut) {
        root.insert("path".into(), "rootfs".into());
    }
    if let Some(process) = spec.get_mut("process").and_then(Value::as_object_mut) {
        process.remove("apparmorProfile");
        process.remove("selinuxLabel");
    }
    let hostname = spec.remove("hostname");
    let hostname = hostname.as_ref().and_then(Value::as_str).filter(|name| !name.is_empty());
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    let linux = linux.as_object_mut().ok_or_else(|| invalid("linux", "this is no object"))?;
    let sysctls = linux.remove("sysctl").map(sysctls).transpose()?.unwrap_or_default();
    edit_linux(linux, request.id.as_str(), &mut plan.left_out)?;
    plan.shared_pid = namespaces(linux, &request.pod.pids)?;
    if request.pod.opened {
        plan.left_out.extend(
            sysctls
                .keys()
                .map(|key| format!("sysctl {key}, which only the Pod's first container can set")),
        );
    } else {
        let hostname = hostname.map(str::to_owned);
        plan.guest = Some(GuestPlan { hostname, sysctls, shm: None });
    }
    Ok(())
}

/// Refuses hooks that run in the container's namespaces. The host runs the others.
fn refuse_hooks(spec: &Map<String, Value>) -> Result<(), PlanError> {
    for (place, list) in
        [("hooks.createContainer", "createContainer"), ("hooks.startContainer", "startContainer")]
    {
        let hooks = spec.get("hooks").and_then(|hooks| hooks.get(list)).and_then(Value::as_array);
        if let Some(hook) = hooks.and_then(|hooks| hooks.first()) {
            let path = hook["path"].as_str().unwrap_or_default();
            let reason = format!(
                "{path} would run in the container's namespaces, which are a guest's, where the \
                 host's programs and paths do not exist; make it a createRuntime hook, or run the \
                 container under another runtime handler"
            );
            return Err(unsupported(place, reason));
        }
    }
    Ok(())
}

fn edit_linux(
    linux: &mut Map<String, Value>,
    id: &str,
    left_out: &mut Vec<String>,
) -> Result<(), PlanError> {
    linux.insert("cgroupsPath".into(), format!("/bulkhead/{id}").into());
    for key in ["mountLabel", "intelRdt", "rootfsPropagation", "netDevices", "memoryPolicy"] {
        linux.remove(key);
    }
    let listener = linux.get("seccomp").and_then(|seccomp| seccomp.get("listenerPath"));
    if listener.and_then(Value::as_str).is_some_and(|path| !path.is_empty()) {
        let reason = "a seccomp listener on the host cannot answer for processes of a guest";
        return Err(unsupported("linux.seccomp.listenerPath", reason));
    }
    let Some(resources) = linux.get_mut("resources").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        // The host's processors and memory nodes; the guest has its own numbers.
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    for key in ["blockIO", "rdma", "network", "hugepageLimits"] {
        let set = resources.remove(key);
        if set.is_some_and(|set| key != "hugepageLimits" || asks_for_pages(&set)) {
            left_out.push(format!("linux.resources.{key}, which is about the host's devices"));
        }
    }
    Ok(())
}

/// Whether a limit is not 0: kubelet writes a limit of 0 for each page size.
fn asks_for_pages(limits: &Value) -> bool {
    limits.as_array().into_iter().flatten().any(|limit| limit["limit"].as_u64() > Some(0))
}

fn sysctls(value: Value) -> Result<BTreeMap<String, String>, PlanError> {
    serde_json::from_value::<Option<_>>(value)
        .map(Option::unwrap_or_default)
        .map_err(|error| invalid("linux.sysctl", error.to_string()))
}

/// Removes the guest's own namespaces and the host's paths. Returns whether the process id namespace
/// is the Pod's.
fn namespaces(linux: &mut Map<String, Value>, pids: &[u32]) -> Result<bool, PlanError> {
    let place = "linux.namespaces";
    let mut namespaces = match linux.remove("namespaces") {
        Some(Value::Array(namespaces)) => namespaces,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => return Err(invalid(place, "this is no list")),
    };
    let find = |kind: &str| namespaces.iter().find(|namespace| namespace["type"] == kind);
    if find("user").is_some() {
        let reason = "a container of a virtual machine has no user namespace; leave hostUsers out";
        return Err(unsupported(place, reason));
    }
    if find("ipc").is_none() {
        let reason = "a virtual machine cannot share the host's IPC namespace; leave hostIPC out";
        return Err(unsupported(place, reason));
    }
    let Some(pid) = find("pid") else {
        let reason =
            "a virtual machine cannot share the host's process id namespace; leave hostPID out";
        return Err(unsupported(place, reason));
    };
    let shared = match pid["path"].as_str().filter(|path| !path.is_empty()) {
        None => false,
        Some(path) if of_pod(path, pids) => true,
        Some(path) => {
            let reason = format!("{path} is no process id namespace of this Pod");
            return Err(unsupported(place, reason));
        }
    };
    namespaces.retain(|namespace| namespace["type"].as_str().is_some_and(|k| !GUESTS.contains(&k)));
    if shared {
        namespaces.retain(|namespace| namespace["type"] != "pid");
    }
    for namespace in namespaces.iter_mut().filter_map(Value::as_object_mut) {
        namespace.remove("path");
    }
    // A host with cgroup v1 asks for none; without one the guest's whole tree is in sight.
    if !namespaces.iter().any(|namespace| namespace["type"] == "cgroup") {
        namespaces.push(json!({"type": "cgroup"}));
    }
    linux.insert("namespaces".into(), namespaces.into());
    Ok(shared)
}

/// Whether `path` is `/proc/<pid>/ns/pid` of a process that stands for a container of the Pod.
fn of_pod(path: &str, pids: &[u32]) -> bool {
    let pid = path.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/ns/pid"));
    pid.and_then(|pid| pid.parse().ok()).is_some_and(|pid| pids.contains(&pid))
}
