//! What every backend promises, on VMs that run nothing: the VMM is a fake of either driver, the
//! guest is played here, virtiofsd is a script. Mounts, records and processes are real.

mod guest;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use guest_image::{Agent, Digest, FORMAT, GuestImage, ImageFile, Kernel, MANIFEST, Manifest};
use sandbox_core::contract::{self, Subject};
use sandbox_core::{
    Backend, Bundle, CreateContainer, Early, ExecProcess, Id, Kind, LaunchSandbox, Launched,
    NetworkNamespace, Result, StdioPaths,
};
use sandbox_host::{FakeHost, Host, RealHost};
use serde_json::json;
use tempfile::TempDir;
use vm_driver::{
    Call, Capabilities, CloudHypervisor, CloudHypervisorSettings, Driver, FakeDriver, Qemu,
    QemuSettings,
};

use crate::config::VmConfig;
use crate::environment::Environment;
use crate::launch;
use crate::purge;
use guest::Played;

/// Lists its options as virtiofsd does, and serves nothing.
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
    /// A backend whose VMM has these `capabilities`.
    fn new(capabilities: Capabilities) -> Self {
        let dir = tempfile::Builder::new().prefix("vm-").tempdir().unwrap();
        let driver = FakeDriver::new(capabilities);
        let guest = Played::default();
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

    fn environment(&self) -> Environment {
        let config = VmConfig {
            virtiofsd: Some(self.path("virtiofsd")),
            guest: self.path("guest"),
            root: self.path("m"),
            max_vcpus: 4,
            ..VmConfig::default()
        };
        Environment {
            image: GuestImage::open(&config.guest).unwrap(),
            config: Arc::new(config),
            namespace: Id::new("test").unwrap(),
            host: self
                .host
                .with_private_mounts(&[self.dir.path().to_owned(), "/usr".into()])
                .unwrap(),
            driver: Arc::new(self.driver.clone()),
            prepared: Duration::ZERO,
        }
    }

    /// Nothing of any VM is left on the host.
    fn assert_clean(&self) {
        let there = fs::read_dir(self.path("m")).into_iter().flatten().flatten();
        let left: Vec<_> = there.map(|e| e.file_name()).filter(|name| name != "known").collect();
        assert!(left.is_empty(), "VMs left: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts left: {mounts}");
    }
}

/// The backend without its search for a VMM on this host.
#[derive(Debug)]
struct Given(Arc<Environment>, Arc<dyn Host>);

#[async_trait]
impl Backend for Given {
    async fn launch(&self, request: LaunchSandbox) -> Result<Launched> {
        launch::launch(Arc::clone(&self.0), request).await
    }

    async fn purge(&self, id: &Id, bundle: &Path) -> Result<()> {
        Ok(purge::container(id, bundle, &self.1).await?)
    }
}

#[async_trait]
impl Subject for Vm {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(Given(Arc::new(self.environment()), Arc::clone(&self.host)))
    }

    fn container(&self, id: &str) -> CreateContainer {
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

/// A sandbox that is launched without a container takes containers, and stopping it removes it.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_launch_without_a_container_takes_members() {
    let vm = Vm::new(of_cloud_hypervisor());
    let backend = vm.backend();
    let bundle = vm.path("sandbox");
    fs::create_dir(&bundle).unwrap();
    let request = || LaunchSandbox {
        id: Id::new("sandbox").unwrap(),
        bundle: bundle.clone(),
        network: NetworkNamespace::New,
        cgroups_path: None,
        annotations: HashMap::new(),
        resources: None,
        first: None,
    };
    let launched = backend.launch(request()).await.unwrap();
    assert!(launched.first.is_none());
    let sandbox = launched.sandbox;
    let one = sandbox.create(vm.container("one")).await.unwrap();
    let running = one.init.start(Early::default()).await.unwrap();
    let two = sandbox.create(vm.container("two")).await.unwrap();
    two.init.abandon().await;
    vm.guest.end("one", "", 3);
    assert_eq!(running.wait().await.exit.status, 3);
    one.container.delete().await.unwrap();
    let one = sandbox.create(vm.container("one")).await.unwrap();
    let running = one.init.start(Early::default()).await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(running.wait().await.exit.status, 137);
    sandbox.exited().await;
    for container in [one.container, two.container] {
        container.delete().await.unwrap();
    }
    vm.assert_clean();

    // After a crash the record in its directory is all that there is.
    drop(backend.launch(request()).await.unwrap());
    backend.purge(&Id::new("sandbox").unwrap(), &bundle).await.unwrap();
    vm.assert_clean();
}

/// A failed start is reported as it is, and nothing of its process is left in the guest; with a
/// pause container's goes the VM.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_start_that_fails_leaves_nothing() {
    let vm = Vm::new(of_cloud_hypervisor());
    let request = LaunchSandbox::with_container(vm.container("pod"), true);
    let Launched { sandbox, first } = vm.backend().launch(request).await.unwrap();
    let home = sandbox.create(vm.container("home")).await.unwrap();
    let running = home.init.start(Early::default()).await.unwrap();
    let exec = home.container.exec(vm.exec("home", "e")).await.unwrap();
    let member = sandbox.create(vm.container("member")).await.unwrap();
    vm.guest.refuses_starts();
    let pause = first.unwrap();
    for prepared in [exec, member.init, pause.init] {
        let failed = prepared.start(Early::default()).await.unwrap_err();
        assert_eq!(failed.to_string(), "the guest could not start the process: no start");
    }
    assert!(!vm.guest.knows("home", "e"));
    assert!(!vm.guest.knows("member", ""));
    assert!(vm.guest.knows("home", ""));
    assert_eq!(running.wait().await.exit.status, 137);
    sandbox.exited().await;
    for container in [home.container, member.container, pause.container] {
        container.delete().await.unwrap();
    }
    vm.assert_clean();
}

/// A VM grows with its containers' limits, and a guest that stalls then holds up no delete.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_growth_holds_up_no_delete() {
    let vm = Vm::new(of_cloud_hypervisor());
    let request = LaunchSandbox::with_container(vm.container("pod"), true);
    let sandbox = vm.backend().launch(request).await.unwrap().sandbox;
    let grows = sandbox.create(vm.container("grows")).await.unwrap();
    let other = sandbox.create(vm.container("other")).await.unwrap();
    let limit = |cpus: u32| {
        let limits = json!({"cpu": {"quota": cpus * 100_000, "period": 100_000}});
        serde_json::from_value(limits).unwrap()
    };
    grows.container.update(&limit(2)).await.unwrap();
    let grown = |call: &Call| matches!(call, Call::Grow(2, _));
    assert!(vm.driver.journal().iter().any(grown), "{:?}", vm.driver.journal());

    vm.guest.stalls();
    let larger = limit(3);
    let mut growth = std::pin::pin!(grows.container.update(&larger));
    let early = tokio::time::timeout(Duration::from_millis(100), growth.as_mut()).await;
    assert!(early.is_err(), "the guest did not stall");
    let delete = tokio::time::timeout(Duration::from_secs(5), other.container.delete());
    delete.await.expect("a delete that waits for the guest").unwrap();
    sandbox.stop().await.unwrap();
    vm.assert_clean();
}

#[tokio::test]
#[ignore = "needs mount"]
async fn the_hosts_network_is_refused() {
    let vm = Vm::new(of_cloud_hypervisor());
    let mut request = LaunchSandbox::with_container(vm.container("pod"), true);
    request.network = NetworkNamespace::Host;
    let refused = vm.backend().launch(request).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::InvalidArgument);
    let text = "the Pod uses the host's network, which a machine of its own cannot join; ";
    assert!(refused.to_string().starts_with(text), "{refused}");
    vm.assert_clean();
}

/// Whatever step of a boot fails, its error is returned and nothing is left.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_boot_that_fails_leaves_nothing() {
    let vm = Vm::new(of_cloud_hypervisor());
    for verb in ["launch", "attach", "boot"] {
        vm.driver.fails(verb, Kind::Unavailable, format!("no {verb}"));
        let request = LaunchSandbox::with_container(vm.container("pod"), true);
        let failed = vm.backend().launch(request).await.unwrap_err();
        assert_eq!(failed.kind(), Kind::Unavailable);
        assert_eq!(failed.to_string(), format!("no {verb}"));
        vm.assert_clean();
    }
}

/// A VMM or virtiofsd that exits while the guest boots ends the boot, not its deadline.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_boot_ends_with_what_it_needs() {
    let vm = Vm::new(of_cloud_hypervisor());
    vm.guest.never_dials();
    for virtiofsd in [false, true] {
        let booted = vm.driver.journal().len();
        let kill = async {
            while !vm.driver.journal()[booted..].contains(&Call::Boot) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if virtiofsd { kill_virtiofsd(&vm) } else { vm.driver.ends(9) }
        };
        let begun = Instant::now();
        let request = LaunchSandbox::with_container(vm.container("pod"), true);
        let backend = vm.backend();
        let (failed, ()) = tokio::join!(backend.launch(request), kill);
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

impl Vm {
    /// A container whose hooks note their list, the state and the network namespace of its process;
    /// `last` is run at the end of the `createRuntime` hook.
    fn hooked(&self, id: &str, last: &str) -> CreateContainer {
        let bundle = self.container(id).bundle;
        let mut spec = bundle.json().clone();
        let out = self.path("hooks");
        for list in ["prestart", "createRuntime", "poststart", "poststop"] {
            let last = if list == "createRuntime" { last } else { "true" };
            let script = format!(
                "state=$(cat); pid=$(echo \"$state\" | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
                 status=$(echo \"$state\" | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/'); \
                 net=$(readlink /proc/$pid/ns/net); echo {id} {list} $status $net >> {}; {last}",
                out.display()
            );
            spec["hooks"][list] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        }
        fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
        CreateContainer {
            id: Id::new(id).unwrap(),
            bundle: Bundle::load(bundle.path()).unwrap(),
            rootfs: vec![],
            stdio: StdioPaths::default(),
            checkpoint: None,
        }
    }

    /// What the hooks have noted: container, list, status, network namespace.
    fn noted(&self) -> Vec<Vec<String>> {
        let noted = fs::read_to_string(self.path("hooks")).unwrap_or_default();
        noted.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }
}

/// The hooks of the host run in order, those of a creation in a network namespace of the Pod's.
#[tokio::test]
#[ignore = "needs mount"]
async fn hooks_run_in_order_and_in_the_pods_network() {
    let vm = Vm::new(of_cloud_hypervisor());
    let request = LaunchSandbox::with_container(vm.hooked("pod", "true"), false);
    let Launched { first, .. } = vm.backend().launch(request).await.unwrap();
    let first = first.unwrap();
    let running = first.init.start(Early::default()).await.unwrap();
    vm.guest.end("pod", "", 0);
    running.wait().await;
    first.container.delete().await.unwrap();
    let noted = vm.noted();
    let lists: Vec<String> = noted.iter().map(|line| line[..3].join(" ")).collect();
    let expected = [
        "pod prestart creating",
        "pod createRuntime creating",
        "pod poststart running",
        "pod poststop stopped",
    ];
    assert_eq!(lists, expected);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(noted[0][3].starts_with("net:["), "{noted:?}");
    assert_ne!(noted[0][3], own.to_str().unwrap());
    assert_eq!(noted[0][3], noted[1][3]);
    vm.assert_clean();
}

/// A hook that fails makes the creation fail, and what the hooks before it did is undone.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_hook_that_fails_leaves_nothing() {
    let vm = Vm::new(of_cloud_hypervisor());
    let failing = || vm.hooked("pod", "echo no address >&2; exit 3");
    let request = LaunchSandbox::with_container(failing(), false);
    let failed = vm.backend().launch(request).await.unwrap_err();
    let text = "the createRuntime hook /bin/sh exited with status 3: no address";
    assert_eq!(failed.to_string(), text);
    let lists = || vm.noted().into_iter().map(|mut line| line.remove(1)).collect::<Vec<_>>();
    assert_eq!(lists(), ["prestart", "createRuntime", "poststop"]);
    assert_eq!(vm.driver.journal(), []);
    vm.assert_clean();
}

/// After a crash the clean-up runs the `poststop` hooks, once.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_purge_runs_the_hooks_after_a_stop() {
    let vm = Vm::new(of_cloud_hypervisor());
    let request = LaunchSandbox::with_container(vm.hooked("pod", "true"), false);
    let backend = vm.backend();
    drop(backend.launch(request).await.unwrap());
    for _ in 0..2 {
        backend.purge(&Id::new("pod").unwrap(), &vm.path("pod")).await.unwrap();
    }
    let lists: Vec<String> = vm.noted().into_iter().map(|mut line| line.remove(1)).collect();
    assert_eq!(lists, ["prestart", "createRuntime", "poststop"]);
    vm.assert_clean();
}
