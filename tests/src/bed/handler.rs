//! The handlers that cases are played on, and how each is registered with containerd.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::fault::{FAILING_TEXT, Fault};
use super::packages::Packages;
use super::place;
use super::vm::{VmTools, Vmm};

/// A RuntimeClass handler under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {
    /// runc through containerd's own shim: the control of every case.
    Runc,
    /// Bulkhead on Debian's runsc.
    Gvisor,
    /// Bulkhead on the newest runsc.
    GvisorNew,
    /// The newest runsc through gVisor's own shim: a peer, for comparison.
    GvisorGo,
    /// Bulkhead with a VM for each Pod.
    KataContainers,
}

impl Handler {
    /// Every handler that is known.
    pub(crate) const ALL: [Self; 5] =
        [Self::Runc, Self::Gvisor, Self::GvisorNew, Self::GvisorGo, Self::KataContainers];

    /// The name that containerd and RuntimeClasses know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Gvisor => "gvisor",
            Self::GvisorNew => "gvisor-new",
            Self::GvisorGo => "gvisor-go",
            Self::KataContainers => "kata-containers",
        }
    }

    /// The handler of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|handler| handler.name() == name)
    }

    /// Whether Bulkhead's shim serves it.
    pub(crate) fn is_bulkhead(self) -> bool {
        match self {
            Self::Runc | Self::GvisorGo => false,
            Self::Gvisor | Self::GvisorNew | Self::KataContainers => true,
        }
    }

    /// Whether each of its Pods runs in a VM.
    pub(crate) fn is_vm(self) -> bool {
        match self {
            Self::Runc | Self::Gvisor | Self::GvisorNew | Self::GvisorGo => false,
            Self::KataContainers => true,
        }
    }

    /// Whether it needs the newest gVisor.
    pub(crate) fn needs_newest(self) -> bool {
        match self {
            Self::Runc | Self::Gvisor | Self::KataContainers => false,
            Self::GvisorNew | Self::GvisorGo => true,
        }
    }

    /// The runtime type, as in containerd's configuration and `ctr run --runtime`.
    pub(crate) fn runtime_type(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Gvisor | Self::GvisorNew | Self::KataContainers => "io.containerd.bulkhead.v2",
            Self::GvisorGo => "io.containerd.runsc.v1",
        }
    }
}

/// The suffix of a handler's second registration, under runc's type: containerd 2 reads the
/// features of that type alone, and offers recursive read-only mounts only by them.
pub(crate) const AS_RUNC: &str = "-as-runc";

/// One `runtimes.NAME` table of containerd's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The handler's name.
    pub(crate) name: String,
    /// Its `runtime_type`.
    pub(crate) runtime_type: &'static str,
    /// Its `runtime_path`, where the type is not the shim's own.
    pub(crate) runtime_path: Option<PathBuf>,
    /// Whether a privileged Pod gets only the devices that it names, not all of the host.
    pub(crate) own_devices: bool,
    /// Keys of its `options` table; every value is a string.
    pub(crate) options: Vec<(&'static str, String)>,
}

/// The paths of one containerd's handlers.
#[derive(Debug)]
pub(crate) struct Paths<'a> {
    /// The unpacked packages.
    pub(crate) packages: &'a Packages,
    /// The newest runsc, if it could be built.
    pub(crate) newest: Option<PathBuf>,
    /// The programs and image of VMs, if this machine has them.
    pub(crate) vm: Option<&'a VmTools>,
    /// Where handler files and the broken runtimes are written.
    pub(crate) dir: PathBuf,
    /// runsc's state; a short path, as it holds sockets.
    pub(crate) runsc_root: PathBuf,
    /// runsc's debug logs.
    pub(crate) runsc_logs: PathBuf,
    /// The VMs' folders; a short path, as they hold sockets.
    pub(crate) vm_root: PathBuf,
}

impl Paths<'_> {
    /// The low-level runtime or VMM of `handler`; `None` where this machine has none.
    pub(crate) fn runtime(&self, handler: Handler) -> Option<PathBuf> {
        match handler {
            Handler::Runc => Some(self.packages.runc()),
            Handler::Gvisor => Some(self.packages.runsc()),
            Handler::GvisorNew | Handler::GvisorGo => self.newest.clone(),
            Handler::KataContainers => Some(self.vm?.vmm.program().to_owned()),
        }
    }

    /// Writes every handler's file and returns the tables, the broken ones included.
    pub(crate) fn write(&self) -> Result<Vec<Entry>> {
        fs::create_dir_all(&self.dir)?;
        fs::create_dir_all(&self.runsc_logs)?;
        let failing = self.script("failing", &format!("echo '{FAILING_TEXT}' >&2\nexit 1"))?;
        // containerd 2 runs `features` of every runc when it starts.
        let hang = "for word; do [ \"$word\" = features ] && exit 1; done\nexec sleep 3600";
        let hanging = self.script("hanging", hang)?;
        let missing = self.dir.join("no-such-runtime");
        let mut entries = Vec::new();
        for handler in Handler::ALL {
            let Some(runtime) = self.runtime(handler) else { continue };
            let entry = self.entry(handler, "", &runtime)?;
            entries.extend(self.as_runc(handler, &entry));
            entries.push(entry);
            for fault in Fault::ALL {
                let runtime = match fault {
                    Fault::Missing => &missing,
                    Fault::Failing => &failing,
                    Fault::Hanging => &hanging,
                    Fault::NoFile | Fault::UnknownKey => &runtime,
                };
                let mut entry = self.entry(handler, &format!("-{}", fault.name()), runtime)?;
                self.spoil(handler, fault, &mut entry)?;
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The file of a Bulkhead handler; `name` has the suffix of its fault.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    fn entry(&self, handler: Handler, suffix: &str, runtime: &Path) -> Result<Entry> {
        let name = format!("{}{suffix}", handler.name());
        let file = self.file(&name);
        let with_file = |text: String, kind: &str| -> Result<_> {
            fs::write(&file, text)?;
            let path = file.display().to_string();
            Ok(vec![("TypeUrl", format!("{kind}.options")), ("ConfigPath", path)])
        };
        let options = match handler {
            Handler::Runc => vec![("BinaryName", runtime.display().to_string())],
            Handler::Gvisor | Handler::GvisorNew => {
                with_file(self.gvisor_toml(handler, runtime), handler.runtime_type())?
            }
            Handler::KataContainers => with_file(self.vm_toml(runtime)?, handler.runtime_type())?,
            Handler::GvisorGo => with_file(self.peer_toml(runtime), handler.runtime_type())?,
        };
        Ok(Entry {
            name,
            runtime_type: handler.runtime_type(),
            runtime_path: None,
            own_devices: handler.is_vm(),
            options,
        })
    }

    /// The second registration of a Bulkhead handler, with the file of the first.
    fn as_runc(&self, handler: Handler, entry: &Entry) -> Option<Entry> {
        let shim = shim().filter(|_| handler.is_bulkhead())?;
        Some(Entry {
            name: format!("{}{AS_RUNC}", entry.name),
            runtime_type: Handler::Runc.runtime_type(),
            runtime_path: Some(shim),
            own_devices: entry.own_devices,
            options: vec![("BinaryName", self.file(&entry.name).display().to_string())],
        })
    }

    fn spoil(&self, handler: Handler, fault: Fault, entry: &mut Entry) -> Result<()> {
        if !handler.is_bulkhead() {
            return Ok(());
        }
        let file = self.file(&entry.name);
        match fault {
            Fault::NoFile => fs::remove_file(&file)?,
            Fault::UnknownKey => {
                let text = fs::read_to_string(&file)?;
                fs::write(&file, format!("{text}no_such_key = \"x\"\n"))?;
            }
            Fault::Hanging => {
                let text = fs::read_to_string(&file)?;
                let short = match handler.is_vm() {
                    true => "[vm.timeouts]\nlaunch = 5\n",
                    false => "[gvisor.timeouts]\ncreate = 5\n",
                };
                fs::write(&file, format!("{text}\n{short}"))?;
            }
            Fault::Missing | Fault::Failing => {}
        }
        Ok(())
    }

    /// A handler's file, as an admin would write it.
    fn gvisor_toml(&self, handler: Handler, runsc: &Path) -> String {
        // Debian's runsc honours no set-user-ID bit.
        let flags = match handler.needs_newest() {
            true => "flags = { allow-suid = \"true\" }\n",
            false => "",
        };
        format!(
            "backend = \"gvisor\"\n\n[gvisor]\nrunsc = \"{}\"\nroot = \"{}\"\n\
             platform = \"systrap\"\nnetwork = \"sandbox\"\nallow_host_network = true\n\
             debug_log = \"{}/\"\n{flags}",
            runsc.display(),
            self.runsc_root.display(),
            self.runsc_logs.display(),
        )
    }

    fn vm_toml(&self, program: &Path) -> Result<String> {
        let tools = self.vm.context("a VM handler without its tools")?;
        let vmm = match &tools.vmm {
            Vmm::Qemu { vsock_device, .. } => format!(
                "hypervisor = \"qemu\"\nallow_emulation = true\nqemu = \"{}\"\nvsock_device = \"{}\"\n",
                program.display(),
                vsock_device.display(),
            ),
            Vmm::CloudHypervisor { .. } => format!(
                "hypervisor = \"cloud-hypervisor\"\ncloud_hypervisor = \"{}\"\n",
                program.display()
            ),
        };
        Ok(format!(
            "backend = \"vm\"\n\n[vm]\n{vmm}virtiofsd = \"{}\"\nguest = \"{}\"\nroot = \"{}\"\n\
             memory_mib = 512\nmemory_floor_mib = 256\nconsole = true\n",
            tools.virtiofsd.display(),
            tools.guest.display(),
            self.vm_root.display(),
        ))
    }

    /// The file of gVisor's own shim, with the same settings.
    fn peer_toml(&self, runsc: &Path) -> String {
        format!(
            "binary_name = \"{}\"\nroot = \"{}\"\n[runsc_config]\nplatform = \"systrap\"\n",
            runsc.display(),
            self.runsc_root.display(),
        )
    }

    fn script(&self, name: &str, body: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.join(format!("runtime-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

/// Bulkhead's shim, if it has been built.
pub(crate) fn shim() -> Option<PathBuf> {
    place::built("containerd-shim-bulkhead-v2")
}
