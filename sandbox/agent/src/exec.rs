//! What an exec is made from.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use libcontainer::oci_spec::runtime::{Capability, LinuxCapabilities, Spec};
use serde_json::{Map, Value, json};

use crate::boot::make_dir;
use crate::error::{Doing, Result};
use crate::ground::states;
use crate::helper::LATE;

/// Writes what the helper needs for an exec of container `id` to `dir`, the exec's own state
/// directory: libcontainer's leavings go with it.
pub(crate) fn write(
    dir: &Path,
    id: &str,
    spec: &Spec,
    mut process: Map<String, Value>,
    capabilities: Option<LinuxCapabilities>,
) -> Result<()> {
    let state = dir.join(id);
    make_dir(&state)?;
    let model = states().join(id).join("state.json");
    fs::copy(&model, state.join("state.json")).doing(|| format!("copying {}", model.display()))?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    let mut late = json!({ "seccomp": seccomp, "capabilities": null });
    if seccomp.is_some() && process.get("noNewPrivileges") != Some(&Value::Bool(true)) {
        let own = capabilities.unwrap_or_else(none);
        late["capabilities"] = json!(own);
        process.insert("capabilities".into(), json!(with_admin(own)));
    }
    for (file, json) in [("process.json", Value::Object(process)), (LATE, late)] {
        let path = dir.join(file);
        fs::write(&path, json.to_string()).doing(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn none() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    let sets = Some(HashSet::new());
    none.set_bounding(sets.clone()).set_effective(sets.clone()).set_permitted(sets.clone());
    none.set_inheritable(sets.clone()).set_ambient(sets);
    none
}

/// `own` with what the kernel wants of a process that loads a seccomp filter.
fn with_admin(mut own: LinuxCapabilities) -> LinuxCapabilities {
    let add = |set: &Option<HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(Capability::SysAdmin);
        Some(set)
    };
    let (effective, permitted) = (add(own.effective()), add(own.permitted()));
    own.set_effective(effective).set_permitted(permitted);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_force_gets_more() {
        let own = none();
        let more = with_admin(own.clone());
        assert!(more.effective().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(more.permitted().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert_eq!(more.bounding(), own.bounding());
        assert_eq!(more.inheritable(), own.inheritable());
    }
}
