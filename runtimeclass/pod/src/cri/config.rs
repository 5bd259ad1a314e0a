//! containerd's configuration as its CRI status shows it.

/// `SystemdCgroup` of a handler (the default one if it has no name) in containerd's configuration as JSON.
pub(super) fn configured_systemd(config: &str, handler: &str) -> bool {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let containerd = &config["containerd"];
    let default = containerd["defaultRuntimeName"].as_str().unwrap_or_default();
    let handler = if handler.is_empty() { default } else { handler };
    containerd["runtimes"][handler]["options"]["SystemdCgroup"].as_bool().unwrap_or_default()
}

/// The names of the handlers in containerd's configuration as JSON.
pub(super) fn configured_handlers(config: &str) -> Vec<String> {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let runtimes = config["containerd"]["runtimes"].as_object();
    runtimes.map(|all| all.keys().cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handlers_of_old_runtimes() {
        let config = r#"{"containerd":{"runtimes":{"runc":{},"gvisor":{}}}}"#;
        assert_eq!(configured_handlers(config), ["gvisor", "runc"]);
        assert!(configured_handlers("").is_empty());
    }

    #[test]
    fn the_cgroup_driver_of_old_runtimes() {
        let config = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{
            "runc":{"options":{"SystemdCgroup":true}},"gvisor":{"options":{"TypeUrl":"x"}},"bare":{}}}}"#;
        for (handler, wanted) in
            [("", true), ("runc", true), ("gvisor", false), ("bare", false), ("no", false)]
        {
            assert_eq!(configured_systemd(config, handler), wanted, "{handler}");
        }
        assert!(!configured_systemd("", ""));
    }
}
