//! A handler's file: raw TOML in, a checked [`Handler`] out.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_core::Fault;
use sandbox_gvisor::GvisorConfig;
use sandbox_vm::VmConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::fault::ConfigError;

/// The file that is read when containerd passes no options at all. If it does not exist, Pods run
/// under gVisor with its defaults.
pub const DEFAULT_CONFIG: &str = "/etc/bulkhead/default.toml";

/// Where handlers' files are that nothing but a name chooses.
const CONFIG_DIRECTORY: &str = "/etc/bulkhead";

/// Where a handler's configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigSource {
    /// No options: [`DEFAULT_CONFIG`] if it exists.
    Default,
    /// No options, by a shim that was called under a handler's name: this file, which must exist.
    Named(PathBuf),
    /// `ConfigPath`.
    Path(PathBuf),
    /// The options table itself, as TOML (containerd 1.7 and later).
    Inline(String),
}

impl ConfigSource {
    /// Where options choose nothing, the file that the name of `program` does:
    /// `containerd-shim-bulkhead-NAME-v2`, a link to the shim, chooses `/etc/bulkhead/NAME.toml`.
    #[must_use]
    pub fn or_named(self, program: &Path) -> Self {
        let name = program
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(|name| name.strip_prefix("containerd-shim-bulkhead-")?.strip_suffix("-v2"));
        match (self, name) {
            (Self::Default, Some(name)) => named_in(Path::new(CONFIG_DIRECTORY), name),
            (source, _) => source,
        }
    }
}

/// The file of the handler `name` in `directory`.
fn named_in(directory: &Path, name: &str) -> ConfigSource {
    ConfigSource::Named(directory.join(format!("{name}.toml")))
}

/// A checked handler: everything that decides how its Pods run. Each container's bundle keeps a
/// copy, so that cleaning up uses the settings that were used to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", content = "settings", rename_all = "lowercase")]
pub enum Handler {
    /// Pods run in a gVisor sandbox.
    Gvisor(GvisorConfig),
    /// Each Pod runs in a VM of its own.
    Vm(VmConfig),
}

impl Default for Handler {
    fn default() -> Self {
        Self::Gvisor(GvisorConfig::default())
    }
}

impl Handler {
    /// The backend's name, as the handler's file writes it.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Gvisor(_) => "gvisor",
            Self::Vm(_) => "vm",
        }
    }

    /// Reads and checks the configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file and, at once, every key that is wrong.
    pub fn load(source: &ConfigSource) -> Result<Self, ConfigError> {
        match source {
            ConfigSource::Default => Self::read_default(Path::new(DEFAULT_CONFIG)),
            ConfigSource::Named(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| ConfigError::Named { path: path.clone(), source })?;
                Self::parse(&path.display().to_string(), &text)
            }
            ConfigSource::Path(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
                Self::parse(&path.display().to_string(), &text)
            }
            ConfigSource::Inline(text) => Self::parse("the inline runtime options", text),
        }
    }

    fn read_default(path: &Path) -> Result<Self, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&path.display().to_string(), &text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        }
    }

    /// Checks the text of a handler's file; `place` is named in errors.
    ///
    /// # Errors
    ///
    /// As [`Handler::load`].
    pub fn parse(place: &str, text: &str) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            place: place.to_owned(),
            message: located(text, &e),
        })?;
        // containerd leaves its own key in an inline table.
        table.remove("TypeUrl");
        let mut faults = Vec::new();
        let backend = backend(table.remove("backend"), &mut faults);
        let handler = match backend {
            Some(Kind::Vm) => {
                let config: VmConfig = section(&mut table, "vm", VmConfig::faults, &mut faults);
                Self::Vm(config)
            }
            // Without a backend the faults of the settings are still reported.
            Some(Kind::Gvisor) | None => {
                let check = GvisorConfig::faults;
                Self::Gvisor(section(&mut table, "gvisor", check, &mut faults))
            }
        };
        faults.extend(table.iter().map(|(key, value)| match (key.as_str(), backend) {
            ("gvisor", Some(Kind::Vm)) | ("vm", Some(Kind::Gvisor)) => {
                format!("[{key}] belongs to another backend than the one that is set; remove it")
            }
            _ => format!(
                "{key} = {value}: unknown setting; the settings are backend, [gvisor] and [vm]"
            ),
        }));
        if faults.is_empty() {
            return Ok(handler);
        }
        Err(ConfigError::Faults { place: place.to_owned(), faults })
    }

    /// The backend's name, as the file writes it.
    pub fn backend_name(&self) -> &'static str {
        match self {
            Self::Gvisor(_) => "gvisor",
            Self::Vm(_) => "vm",
        }
    }
}

/// Which backend a file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gvisor,
    Vm,
}

fn backend(value: Option<Value>, faults: &mut Vec<String>) -> Option<Kind> {
    match value {
        Some(Value::String(name)) if name == "gvisor" => return Some(Kind::Gvisor),
        Some(Value::String(name)) if name == "vm" => return Some(Kind::Vm),
        Some(other) => faults.push(format!("backend = {other}: must be \"gvisor\" or \"vm\"")),
        None => {
            faults.push("backend is missing: set backend = \"gvisor\" or \"vm\"".to_owned());
        }
    }
    None
}

/// Takes the table `name` and reads a backend's settings from it; `check` returns their faults.
fn section<C: DeserializeOwned + Default>(
    table: &mut Table,
    name: &str,
    check: fn(&C) -> Vec<Fault>,
    faults: &mut Vec<String>,
) -> C {
    let section = match table.remove(name) {
        None => Table::new(),
        Some(Value::Table(settings)) => settings,
        Some(other) => {
            faults.push(format!("{name} = {other}: it must be a table, [{name}]"));
            Table::new()
        }
    };
    let config: C = settings(name, &section, faults);
    let described =
        |fault: Fault| format!("{name}.{} = {:?}: {}", fault.key, fault.value, fault.reason);
    faults.extend(check(&config).into_iter().map(described));
    config
}

/// Reads the settings one key at a time, so that no fault hides another.
fn settings<C: DeserializeOwned + Default>(
    name: &str,
    table: &Table,
    faults: &mut Vec<String>,
) -> C {
    let mut good = Table::new();
    for (key, value) in table {
        let single = Table::from_iter([(key.clone(), value.clone())]);
        let mut unknown = Vec::new();
        let note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
        let read: Result<C, _> = serde_ignored::deserialize(single, note);
        faults.extend(
            unknown
                .iter()
                .map(|path| format!("{name}.{path}: unknown setting; see the handler's reference")),
        );
        match read {
            Ok(_) => drop(good.insert(key.clone(), value.clone())),
            Err(error) => faults.push(format!("{name}.{key} = {value}: {}", one_line(&error))),
        }
    }
    // Each key was read by itself, so reading them together succeeds.
    good.try_into().unwrap_or_default()
}

/// A syntax error's place and reason, on one line.
fn located(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {}", one_line(error))
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        Handler::parse("x.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_programs_name_chooses_where_no_option_does() {
        let named = |program: &str| ConfigSource::Default.or_named(Path::new(program));
        let file = ConfigSource::Named("/etc/bulkhead/gvisor.toml".into());
        assert_eq!(named("/opt/bin/containerd-shim-bulkhead-gvisor-v2"), file);
        let file = ConfigSource::Named("/etc/bulkhead/kata-containers.toml".into());
        assert_eq!(named("containerd-shim-bulkhead-kata-containers-v2"), file);
        for plain in ["containerd-shim-bulkhead-v2", "containerd-shim-runc-v2", "shim", ""] {
            assert_eq!(named(plain), ConfigSource::Default, "{plain}");
        }
        let path = ConfigSource::Path("/x.toml".into());
        let kept = path.clone().or_named(Path::new("containerd-shim-bulkhead-gvisor-v2"));
        assert_eq!(kept, path);
    }

    #[test]
    fn a_named_file_must_exist() {
        let source = named_in(Path::new("/no/such"), "foo");
        let error = Handler::load(&source).unwrap_err();
        assert_eq!(sandbox_core::Classified::kind(&error), sandbox_core::Kind::NotFound);
        let text = error.to_string();
        for part in ["/no/such/foo.toml", "the name under which the shim was called", "create it"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_minimal_file_means_the_defaults() {
        assert_eq!(Handler::parse("x", "backend = \"gvisor\"").unwrap(), Handler::default());
        let inline = "TypeUrl = \"a\"\nbackend = \"gvisor\"\n[gvisor]\noci_seccomp = true";
        let parsed = Handler::parse("x", inline).unwrap();
        assert!(matches!(parsed, Handler::Gvisor(config) if config.oci_seccomp));
    }

    #[test]
    fn a_vm_handler_has_settings_of_its_own() {
        let text = "backend = \"vm\"\n[vm]\nhypervisor = \"qemu\"\nallow_emulation = true";
        let parsed = Handler::parse("x", text).unwrap();
        assert!(matches!(&parsed, Handler::Vm(config) if config.allow_emulation));
        assert_eq!(parsed.backend_name(), "vm");
        let text = "backend = \"vm\"\n[vm]\nhypervisor = \"xen\"\nvcpus = 0\n[vm.timeouts]\nboot = 0\n\
                    [gvisor]\ndebug = true";
        let fault = fault(text);
        for part in [
            "vm.hypervisor = \"xen\": unknown variant `xen`",
            "vm.vcpus = \"0\": must be 1 to 254",
            "vm.timeouts.boot = \"0\": must be 1 to 3600 seconds",
            "[gvisor] belongs to another backend",
        ] {
            assert!(fault.contains(part), "{part} is not in {fault}");
        }
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let text = "backend = \"gvisr\"\nfoo = 1\n[gvisor]\nplatfrom = \"kvm\"\n\
                    platform = \"hyperv\"\noci_seccomp = \"yes\"\n[gvisor.timeouts]\ncreat = 3\ncall = 0\n";
        let fault = fault(text);
        for part in [
            "x.toml: ",
            "foo = 1: unknown setting",
            "backend = \"gvisr\": must be \"gvisor\" or \"vm\"",
            "gvisor.platfrom: unknown setting",
            "gvisor.platform = \"hyperv\": unknown variant `hyperv`",
            "gvisor.oci_seccomp = \"yes\": invalid type",
            "gvisor.timeouts.creat: unknown setting",
            "gvisor.timeouts.call = \"0\": must be 1 to 3600 seconds",
        ] {
            assert!(fault.contains(part), "{part} is not in {fault}");
        }
    }

    #[test]
    fn a_missing_file_and_invalid_toml() {
        let missing = Handler::load(&ConfigSource::Path("/no/such.toml".into())).unwrap_err();
        assert!(
            missing.to_string().starts_with("handler configuration /no/such.toml: No such file")
        );
        assert!(fault("backend = ").starts_with("x.toml is not valid TOML: line 1, column "));
        assert!(fault("").contains("backend is missing"));
    }

    #[test]
    fn the_decision_survives_a_round_trip() {
        let handler =
            Handler::parse("x", "backend = \"gvisor\"\n[gvisor]\nnetwork = \"none\"").unwrap();
        let text = serde_json::to_string(&handler).unwrap();
        assert!(text.starts_with("{\"backend\":\"gvisor\""), "{text}");
        assert_eq!(serde_json::from_str::<Handler>(&text).unwrap(), handler);
    }
}
