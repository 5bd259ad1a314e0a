//! What every backend promises, on machines that run nothing: the monitor is a fake of either
//! driver, the guest is played here, virtiofsd is a script. Mounts, records and processes are real.

mod guest;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use guest_image::{Agent, Digest, FORMAT, Guest, ImageFile, Kernel, MANIFEST, Manifest};
use sandbox_core::bundle::Bundle;
use sandbox_core::contract::{self, Subject};
use sandbox_core::host::{FakeHost, Host, RealHost};
use sandbox_core::mounts::{Mount, MountTable};
use sandbox_core::{
    Backend, CreateContainer, ExecProcess, Id, Kind, Result, Role, Sandbox, StdioPaths,
};
use serde_json::json;
use tempfile::TempDir;
use vm_driver::{
    Call, Capabilities, CloudHypervisor, CloudHypervisorSettings, Driver, FakeDriver, Qemu,
    QemuSettings,
};

use crate::backend::Means;
use crate::config::VmConfig;
use crate::purge;
use crate::sandbox::VmSandbox;
use guest::Played;

/// Tells what it can do as virtiofsd does, and serves nobody.
const VIRTIOFSD: &str = "#!/bin/sh\n\
    if [ \"$1\" = --help ]; then\n\
    echo --shared-dir --fd --announce-submounts --posix-acl --rlimit-nofile\nexit\nfi\n\
    while :; do sleep 100; done\n";

#[derive(Debug)]
struct Vm {
    dir: TempDir,
    host: Arc<dyn Host>,
    driver: FakeDriver,
    guest: Played,
}

impl Vm {
    /// A VM whose VMM has these capabilities.
    fn new(capabilities: Capabilities) -> Self {
        let dir = tempfile::Builder::new().prefix("vm-").tempdir().unwrap();
        let (driver, guest) = (FakeDriver::new(capabilities), Played::default());
        let playing = guest.clone();
        driver.plays(move |vsock| playing.boots(vsock));
        let vm = Self { dir, host: Arc::new(RealHost::new().unwrap()), driver, guest };
        vm.write("virtiofsd", VIRTIOFSD.as_bytes());
        let program = vm.path("virtiofsd");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        vm.make_image();
        vm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn make_image(&self) {
        fs::create_dir(self.path("guest")).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            self.write(&format!("guest/{name}"), bytes);
            ImageFile { file: name.into(), size: bytes.len() as u64, sha256: Digest::of(bytes) }
        };
        let manifest = Manifest {
            format: FORMAT,
            protocol: agent_api::PROTOCOL,
            kernel: Kernel { package: None, version: None, release: "6.1".into() },
            agent: Agent { version: "0".into(), sha256: Digest::of(b""), size: 1 },
            vmlinux: file("vmlinux", b"\x7fELF"),
            initramfs: file("initramfs", b"cpio"),
            modules: Vec::new(),
        };
        self.write(&format!("guest/{MANIFEST}"), &serde_json::to_vec(&manifest).unwrap());
    }

    fn means(&self) -> Means {
        let config = VmConfig {
            virtiofsd: Some(self.path("virtiofsd")),
            guest: self.path("guest"),
            root: self.path("m"),
            ..VmConfig::default()
        };
        Means {
            image: Guest::open(&config.guest).unwrap(),
            config: Arc::new(config),
            namespace: Id::new("test").unwrap(),
            host: self
                .host
                .with_private_mounts(&[self.dir.path().to_owned(), "/usr".into()])
                .unwrap(),
            driver: Arc::new(self.driver.clone()),
            prepared: std::time::Duration::ZERO,
        }
    }

    /// Nothing of any machine is left on the host.
    fn assert_clean(&self) {
        let there = fs::read_dir(self.path("m")).into_iter().flatten().flatten();
        let left: Vec<_> = there.map(|e| e.file_name()).filter(|name| name != "known").collect();
        assert!(left.is_empty(), "machines left: {left:?}");
        let table = MountTable::current().unwrap();
        let dir = self.dir.path();
        let ours = |mount: &Mount<'_>| mount.point.starts_with(dir) || mount.root.starts_with(dir);
        let mounts: Vec<_> = table.iter().filter(ours).collect();
        assert!(mounts.is_empty(), "mounts left: {mounts:?}");
    }
}

/// The backend without its search for a monitor on this host.
#[derive(Debug)]
struct Given(Arc<Means>, Arc<dyn Host>);

#[async_trait]
impl Backend for Given {
    async fn open(&self) -> Result<Arc<dyn Sandbox>> {
        Ok(Arc::new(VmSandbox::new(Arc::clone(&self.0))))
    }

    async fn purge(&self, id: &Id, bundle: &Path) -> Result<()> {
        Ok(purge::container(id, bundle, &self.1).await?)
    }
}

#[async_trait]
impl Subject for Vm {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(Given(Arc::new(self.means()), Arc::clone(&self.host)))
    }

    fn container(&self, id: &str, role: Role) -> CreateContainer {
        let bundle = self.path(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let spec = json!({
            "ociVersion": "1.1.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["run"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"},
            ]},
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        CreateContainer {
            id: Id::new(id).unwrap(),
            role,
            bundle: Bundle::load(bundle).unwrap(),
            rootfs: vec![],
            stdio: StdioPaths::default(),
            checkpoint: None,
        }
    }

    fn exec(&self, _container: &str, id: &str) -> ExecProcess {
        let spec = json!({"user": {"uid": 0, "gid": 0}, "args": ["run"], "cwd": "/"});
        ExecProcess {
            id: Id::new(id).unwrap(),
            spec: serde_json::from_value(spec).unwrap(),
            stdio: StdioPaths::default(),
        }
    }

    async fn end(&self, container: &str, exec: Option<&str>, status: u32) {
        self.guest.end(container, exec.unwrap_or_default(), status);
    }
}

async fn keeps_its_promises(capabilities: Capabilities) {
    let vm = Vm::new(capabilities);
    contract::holds(&vm).await;
    vm.assert_clean();
}

fn of_cloud_hypervisor() -> Capabilities {
    let settings = CloudHypervisorSettings::default();
    CloudHypervisor::new(Arc::new(FakeHost::new([])), settings).capabilities()
}

#[tokio::test]
#[ignore = "needs mount"]
async fn keeps_what_every_backend_promises_on_cloud_hypervisor() {
    keeps_its_promises(of_cloud_hypervisor()).await;
}

#[tokio::test]
#[ignore = "needs mount"]
async fn keeps_what_every_backend_promises_on_qemu() {
    let qemu = Qemu::new(Arc::new(FakeHost::new([])), QemuSettings::default());
    keeps_its_promises(qemu.capabilities()).await;
}

/// Whatever step of a boot fails, its error comes through and nothing stays behind.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_boot_that_fails_leaves_nothing() {
    let vm = Vm::new(of_cloud_hypervisor());
    for verb in ["launch", "attach", "boot"] {
        vm.driver.fails(verb, Kind::Unavailable, format!("no {verb}"));
        let sandbox = vm.backend().open().await.unwrap();
        let failed = sandbox.create(vm.container("pod", Role::Sandbox)).await.unwrap_err();
        let told = (failed.kind(), failed.to_string());
        assert_eq!(told, (Kind::Unavailable, format!("no {verb}")));
        vm.assert_clean();
    }
}

/// A monitor or virtiofsd that ends while the guest boots ends the boot, not its deadline.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_boot_ends_with_what_it_needs() {
    let vm = Vm::new(of_cloud_hypervisor());
    vm.guest.never_dials();
    for virtiofsd in [false, true] {
        let sandbox = vm.backend().open().await.unwrap();
        let booted = vm.driver.journal().len();
        let kill = async {
            while !vm.driver.journal()[booted..].contains(&Call::Boot) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            if virtiofsd { kill_virtiofsd(&vm) } else { vm.driver.ends(9) }
        };
        let begun = std::time::Instant::now();
        let create = sandbox.create(vm.container("pod", Role::Sandbox));
        let (failed, ()) = tokio::join!(create, kill);
        let failed = failed.unwrap_err();
        assert_eq!(failed.kind(), Kind::Unavailable, "{failed}");
        let waited = begun.elapsed();
        assert!(waited < VmConfig::default().timeouts.boot(), "it took the deadline: {waited:?}");
        vm.assert_clean();
    }
}

fn kill_virtiofsd(vm: &Vm) {
    let ours = vm.dir.path().to_str().unwrap().to_owned();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let serves = line.contains("--shared-dir") && line.contains(&ours);
        serves.then(|| entry.file_name().to_str()?.parse::<i32>().ok()).flatten()
    });
    let killed = pids.map(|pid| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
    });
    assert!(killed.count() > 0, "no virtiofsd runs");
}
