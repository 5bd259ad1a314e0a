//! The files that an exec is created from.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use agent_system::make_dir;
use libcontainer::oci_spec::runtime::{Capability, LinuxCapabilities, Spec};
use serde_json::{Map, Value, json};

use crate::error::{Doing, Result};
use crate::paths::states;
use crate::runtime::LATE;

/// Writes the runtime process's input for an exec of container `id` to `dir`, which is also its
/// root path for libcontainer, so that removing it removes libcontainer's files.
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
        let own = capabilities.unwrap_or_else(no_capabilities);
        late["capabilities"] = json!(own);
        process.insert("capabilities".into(), json!(with_admin(own)));
    }
    for (file, json) in [("process.json", Value::Object(process)), (LATE, late)] {
        let path = dir.join(file);
        fs::write(&path, json.to_string()).doing(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn no_capabilities() -> LinuxCapabilities {
    let mut capabilities = LinuxCapabilities::default();
    let none = Some(HashSet::new());
    capabilities.set_bounding(none.clone());
    capabilities.set_effective(none.clone());
    capabilities.set_permitted(none.clone());
    capabilities.set_inheritable(none.clone());
    capabilities.set_ambient(none);
    capabilities
}

/// `own` and the capability that loading a seccomp filter requires.
fn with_admin(mut own: LinuxCapabilities) -> LinuxCapabilities {
    let add = |set: &Option<HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(Capability::SysAdmin);
        Some(set)
    };
    let effective = add(own.effective());
    let permitted = add(own.permitted());
    own.set_effective(effective).set_permitted(permitted);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_effective_and_permitted_sets_grow() {
        let own = no_capabilities();
        let more = with_admin(own.clone());
        assert!(more.effective().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(more.permitted().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert_eq!(more.bounding(), own.bounding());
        assert_eq!(more.inheritable(), own.inheritable());
    }
}
