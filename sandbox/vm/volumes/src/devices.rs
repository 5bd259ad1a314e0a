//! Device nodes: those of every guest, those that become disks, and those that are refused.

use std::path::Path;

use serde_json::Value;
use vm_driver::Disk;

use crate::config_json::numbers;
use crate::error::{PlanError, invalid, unsupported};
use crate::facts::Facts;
use crate::names::disk_id;
use crate::plan::{BlockDevice, ContainerPlan};

/// Character devices of every guest, with the numbers that they have on every Linux.
const GUESTS: [(u64, u64, &str); 8] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (5, 0, "/dev/tty"),
    (10, 229, "/dev/fuse"),
    (10, 200, "/dev/net/tun"),
];

/// The default mode of a node.
const MODE: u64 = 0o660;

/// The guest's own node for a character device.
pub(crate) fn guest_node(major: u64, minor: u64) -> Option<&'static str> {
    GUESTS.iter().find(|(a, b, _)| (*a, *b) == (major, minor)).map(|(.., node)| *node)
}

/// Whether the container is privileged, by its device cgroup rule: every device, every access.
fn privileged(spec: &Value) -> bool {
    let rules = spec.pointer("/linux/resources/devices").and_then(Value::as_array);
    rules.into_iter().flatten().any(|rule| {
        let any = |key: &str| rule.get(key).is_none_or(|v| v.is_null() || v == -1);
        rule["allow"] == true
            && rule.get("type").is_none_or(|t| t.is_null() || t == "a" || t == "")
            && any("major")
            && any("minor")
            && rule["access"].as_str().is_some_and(|access| access.contains('w'))
    })
}

/// Divides `linux.devices` into those that stay, those that become disks, and those left out.
pub(crate) fn plan(plan: &mut ContainerPlan, facts: &Facts) -> Result<(), PlanError> {
    let privileged = privileged(&plan.spec);
    let Some(listed) = plan.spec.pointer_mut("/linux/devices").map(Value::take) else {
        return Ok(());
    };
    let listed = match listed {
        Value::Array(listed) => listed,
        _ => Vec::new(),
    };
    // A node that no guest has: this privileged container got all devices of the host.
    let foreign = |device: &Value| !is_block(device) && !in_guests(device);
    let all_of_the_host = privileged && listed.iter().any(foreign);
    let mut kept = Vec::new();
    for device in listed {
        let path = device["path"].as_str().unwrap_or_default().to_owned();
        if in_guests(&device) {
            kept.push(device);
        } else if all_of_the_host {
            plan.left_out.push(format!("device {path} of the host"));
        } else if is_block(&device) {
            add_listed(plan, &device, &path, facts)?;
        } else {
            let numbers = numbers(&device).unwrap_or_default();
            let reason = format!(
                "character device {}:{} exists on the host only; a virtual machine cannot have it",
                numbers.0, numbers.1
            );
            return Err(unsupported(format!("linux.devices {path}"), reason));
        }
    }
    plan.spec["linux"]["devices"] = kept.into();
    Ok(())
}

/// Makes the block device `source` of the host a node at `path`, below the container's `/dev`.
pub(crate) fn add_block(
    plan: &mut ContainerPlan,
    source: &Path,
    path: &str,
    read_only: bool,
    device: &Value,
) -> Result<(), PlanError> {
    if !path.starts_with("/dev/") {
        let reason = "a virtual machine's block devices are below /dev; mount it there";
        return Err(unsupported(format!("block device {} at {path}", source.display()), reason));
    }
    let number = |key: &str, default| device[key].as_u64().unwrap_or(default);
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let id = disk_id(source, read_only);
    plan.disks.push(Disk { id: id.clone(), path: source.to_owned(), read_only });
    plan.devices.push(BlockDevice {
        serial: id,
        path: path.into(),
        mode: narrow(number("fileMode", MODE)) & 0o777,
        uid: narrow(number("uid", 0)),
        gid: narrow(number("gid", 0)),
        read_only,
    });
    Ok(())
}

fn add_listed(
    plan: &mut ContainerPlan,
    device: &Value,
    path: &str,
    facts: &Facts,
) -> Result<(), PlanError> {
    let numbers = numbers(device).unwrap_or_default();
    let Some(node) = facts.blocks.get(&numbers) else {
        let (major, minor) = numbers;
        let fault = format!("the host has no node for block device {major}:{minor}");
        return Err(invalid(format!("linux.devices {path}"), fault));
    };
    let read_only = !writable(&plan.spec, numbers);
    add_block(plan, node, path, read_only, device)
}

/// Whether a rule of the device control group lets the container write to a block device. The
/// last rule for it applies; without one it may.
fn writable(spec: &Value, (major, minor): (u64, u64)) -> bool {
    let rules = spec.pointer("/linux/resources/devices").and_then(Value::as_array);
    let exact = |rule: &&Value| {
        rule["type"] == "b"
            && rule["major"] == major
            && rule["minor"] == minor
            && rule["allow"] == true
    };
    let last = rules.into_iter().flatten().rfind(exact);
    last.and_then(|rule| rule["access"].as_str()).is_none_or(|access| access.contains('w'))
}

fn is_block(device: &Value) -> bool {
    device["type"] == "b"
}

/// A device of every guest, or a fifo, which needs none.
fn in_guests(device: &Value) -> bool {
    let character = device["type"] == "c" || device["type"] == "u";
    let known = numbers(device).is_some_and(|(major, minor)| guest_node(major, minor).is_some());
    device["type"] == "p" || (character && known)
}
