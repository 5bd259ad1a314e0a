//! `resources` and overhead.

use crate::fields::Fields;
use crate::resources::{Amounts, Resources};

/// Reads a mapping of resource names to quantities.
pub(super) fn amounts(object: &mut Fields<'_>, key: &str) -> Amounts {
    let Some(mut fields) = object.fields(key) else { return Amounts::default() };
    let cpu = fields.take("cpu").and_then(|node| node.quantity());
    let memory = fields.take("memory").and_then(|node| node.quantity());
    if fields.take("ephemeral-storage").is_some() {
        fields.note("ephemeral-storage", "is not enforced by play");
    }
    for name in fields.keys() {
        let reason = if name.starts_with("hugepages-") {
            "play does not apply huge pages"
        } else {
            "device plugins need a kubelet; play supports cpu, memory and ephemeral-storage"
        };
        fields.refuse(&name, reason);
    }
    Amounts { cpu, memory }
}

/// Reads a container's `resources`.
pub(super) fn resources(container: &mut Fields<'_>) -> Resources {
    let Some(mut fields) = container.fields("resources") else { return Resources::default() };
    let limits = amounts(&mut fields, "limits");
    let mut requests = amounts(&mut fields, "requests");
    for (name, request, limit) in
        [("cpu", requests.cpu, limits.cpu), ("memory", requests.memory, limits.memory)]
    {
        let (Some(request), Some(limit)) = (request, limit) else { continue };
        if request > limit {
            let text = format!("{request} must not be more than the limit {limit}");
            fields.fault(&format!("requests.{name}"), text);
        }
    }
    requests.cpu = requests.cpu.or(limits.cpu);
    requests.memory = requests.memory.or(limits.memory);
    fields.finish_refusing(&[("claims", "dynamic resource allocation needs a cluster")]);
    Resources { requests, limits }
}
