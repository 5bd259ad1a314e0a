//! The files that administrators copy: each is parsed by its own rules, and the names in them agree.

use std::fs;
use std::path::PathBuf;

use bulkhead_runtimeclass::{ConfigSource, Handler};
use sandbox_vm::VmConfig;
use serde_norway::Value as Yaml;
use toml::Table;

const HANDLERS: [&str; 2] = ["gvisor", "kata-containers"];

fn path(folder: &str, file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).join(file)
}

fn read(folder: &str, file: &str) -> String {
    let path = path(folder, file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn runtime_classes_name_their_handler_overhead_and_nodes() {
    for handler in HANDLERS {
        let class: Yaml =
            serde_norway::from_str(&read("manifests", &format!("{handler}.yaml"))).unwrap();
        assert_eq!(class["apiVersion"], "node.k8s.io/v1");
        assert_eq!(class["kind"], "RuntimeClass");
        assert_eq!(class["metadata"]["name"], *handler);
        assert_eq!(class["handler"], *handler);
        let overhead = &class["overhead"]["podFixed"];
        assert!(overhead["memory"].as_str().unwrap().ends_with("Mi"));
        assert!(overhead["cpu"].as_str().unwrap().ends_with('m'));
        let label = format!("bulkhead.io/{handler}");
        assert_eq!(class["scheduling"]["nodeSelector"][label.as_str()], "true");
    }
}

#[test]
fn drop_ins_register_the_shim_with_both_configuration_versions() {
    let plugins = [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")];
    for handler in HANDLERS {
        for (version, plugin) in plugins {
            let file = format!("{handler}-v{version}.toml");
            let table: Table = read("containerd", &file).parse().unwrap();
            assert_eq!(table["version"].as_integer(), Some(version), "{file}");
            let runtime = &table["plugins"][plugin]["containerd"]["runtimes"][handler];
            assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.bulkhead.v2"));
            let options = &runtime["options"];
            assert_eq!(options["TypeUrl"].as_str(), Some("runtimeoptions.v1.Options"));
            let config = format!("/etc/bulkhead/{handler}.toml");
            assert_eq!(options["ConfigPath"].as_str(), Some(config.as_str()));
        }
    }
}

#[test]
fn handler_files_are_checked() {
    let gvisor = Handler::load(&ConfigSource::Path(path("handlers", "gvisor.toml"))).unwrap();
    assert_eq!(gvisor, Handler::default());
    let vm = Handler::load(&ConfigSource::Path(path("handlers", "kata-containers.toml"))).unwrap();
    assert_eq!(vm, Handler::Vm(VmConfig::default()));
}
