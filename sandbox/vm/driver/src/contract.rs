//! The contract of every driver, as one test that runs on each of them.
//!
//! The environment names the programs of the real ones and a guest, which has to connect to the
//! host's vsock port 1024 when it has booted.

mod recorder;
mod tap;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_host::{Command, Host, Kind, ProcessRef, RealHost};
use tokio::net::UnixListener;

use self::recorder::{Recorder, recorder};
use self::tap::Tap;
use crate::check::SECTION;
use crate::cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use crate::fake::FakeDriver;
use crate::kvm::probe_kvm;
use crate::qemu::{Accel, Qemu, QemuSettings};
use crate::user;
use crate::vmm::{Device, Disk, Driver, Nic, Share, VmPlan, Vmm};

/// Deadline for everything but the guest's boot.
const SOON: Duration = Duration::from_secs(90);
/// Deadline for the boot of an emulated guest on a busy host.
const GUEST_START: Duration = Duration::from_secs(120);

/// What a driver is tested with.
struct Fixture {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Whether guests run; without, only the VMM is tested.
    guest_runs: bool,
    /// Whether there is a VMM, which needs a real tap.
    real: bool,
}

impl Fixture {
    /// With the guest that the environment names.
    fn of_environment(guest_runs: bool) -> Self {
        let kernel = named("BULKHEAD_GUEST_KERNEL");
        let initramfs = named("BULKHEAD_GUEST_INITRAMFS");
        Self { kernel, initramfs, guest_runs, real: true }
    }

    fn vm(&self, dir: &Path) -> VmPlan {
        VmPlan {
            dir: dir.to_owned(),
            netns: None,
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            cmdline: "quiet panic=-1 nokaslr cryptomgr.notests".into(),
            vcpus: 1,
            max_vcpus: 2,
            memory: 2 * SECTION,
            max_memory: 4 * SECTION,
            shared_memory: true,
            user: vmm_user(),
            open: vec![std::env::temp_dir()],
            console: Some(dir.join("console")),
        }
    }
}

/// UID of the VMMs; only root can start processes of other users.
fn vmm_user() -> Option<u32> {
    nix::unistd::geteuid().is_root().then(|| user::vm_user(Path::new("/run/contract")))
}

/// A directory that other users can search.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| panic!("{variable} is not set"))
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Launches a VM, which must succeed.
async fn launched(driver: &dyn Driver, vm: &VmPlan) -> Arc<dyn Vmm> {
    soon("launch", driver.launch(vm)).await.unwrap()
}

fn disk(dir: &Path, id: &str, read_only: bool) -> Disk {
    let path = dir.join(format!("{id}.img"));
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    user::chown(&path, vmm_user()).unwrap();
    Disk { id: id.into(), path, read_only }
}

async fn rejected(vmm: &dyn Vmm, device: Device) -> Kind {
    soon("a rejection", vmm.attach(device)).await.unwrap_err().kind()
}

/// The whole contract.
async fn keeps_the_contract(driver: &dyn Driver, fixture: &Fixture) {
    let capabilities = driver.capabilities();
    assert!(!capabilities.name.is_empty() && capabilities.disks > 0);
    rejects_invalid_plans(driver, fixture).await;
    lives_and_stops(driver, fixture).await;
    exits_as_a_whole(driver, fixture).await;
}

async fn rejects_invalid_plans(driver: &dyn Driver, fixture: &Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let fine = fixture.vm(dir.path());
    let bad = [
        VmPlan { vcpus: 0, ..fine.clone() },
        VmPlan { memory: SECTION + 1, ..fine.clone() },
        VmPlan { kernel: dir.path().join("none"), ..fine.clone() },
        VmPlan { initramfs: dir.path().join("none"), ..fine.clone() },
    ];
    for vm in bad {
        let error = soon("a rejection", driver.launch(&vm)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files were left");
}

async fn lives_and_stops(driver: &dyn Driver, fixture: &Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let tap = fixture.real.then(Tap::new);
    let mut vm = fixture.vm(dir.path());
    vm.netns = tap.as_ref().map(|tap| tap.netns.1.clone());
    let vmm = launched(driver, &vm).await;
    assert!(vmm.processes().iter().all(ProcessRef::alive));
    assert!(vmm.vsock().starts_with(dir.path()));

    let first = disk(dir.path(), "1a", true);
    let second = disk(dir.path(), "b2", false);
    vmm.attach(Device::Disk(first.clone())).await.unwrap();
    assert_eq!(rejected(&*vmm, Device::Disk(first)).await, Kind::AlreadyExists);
    let bad = Disk { id: "a/b".into(), ..second.clone() };
    assert_eq!(rejected(&*vmm, Device::Disk(bad)).await, Kind::InvalidArgument);
    let tap = tap.map_or_else(|| File::open("/dev/null").unwrap().into(), |tap| tap.fd);
    let nic = Nic { id: "eth0".into(), mac: [2, 0, 0, 0, 0, 9], mtu: 1400, tap };
    soon("a network interface", vmm.attach(Device::Nic(nic))).await.unwrap();

    let connected = UnixListener::bind(port(vmm.vsock(), 1024)).unwrap();
    soon("boot", vmm.boot()).await.unwrap();
    let again = vmm.boot().await.unwrap_err();
    assert_eq!(again.kind(), Kind::FailedPrecondition, "{again}");
    if fixture.guest_runs {
        let up = tokio::time::timeout(GUEST_START, connected.accept()).await;
        up.expect("the guest does not connect").unwrap();
    }
    plugs_in_and_out(&*vmm, second, dir.path(), fixture.guest_runs).await;
    grows(driver, &*vmm, &vm).await;
    fills(driver, &*vmm, dir.path()).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), vmm.exited()).await.is_err());

    let processes = vmm.processes();
    soon("stop", vmm.stop()).await.unwrap();
    assert!(!processes.iter().any(ProcessRef::alive), "a process is still running");
    soon("the exit", vmm.exited()).await;
    soon("the second stop", vmm.stop()).await.unwrap();
    let late = Device::Disk(disk(dir.path(), "late", true));
    assert_eq!(rejected(&*vmm, late).await, Kind::Unavailable);
    assert!(!vmm.vsock().exists(), "the vsock's socket was left");
    println!("{}", std::fs::read_to_string(dir.path().join("console")).unwrap_or_default());
}

async fn plugs_in_and_out(vmm: &dyn Vmm, disk: Disk, dir: &Path, guest_runs: bool) {
    let gone = Disk { path: dir.join("none.img"), ..disk.clone() };
    soon("a rejection", vmm.attach(Device::Disk(gone))).await.unwrap_err();
    let share = |id: &str, socket: PathBuf| {
        Device::Share(Share { id: id.into(), tag: "share".into(), socket })
    };
    soon("a rejection", vmm.attach(share("fs", dir.join("unserved")))).await.unwrap_err();
    // The failed share has freed its slot.
    soon("a disk", vmm.attach(Device::Disk(disk.clone()))).await.unwrap();
    soon("nothing", vmm.detach("unknown")).await.unwrap();
    if guest_runs {
        soon("unplugging", vmm.detach(&disk.id)).await.unwrap();
        soon("nothing", vmm.detach(&disk.id)).await.unwrap();
        soon("a disk again", vmm.attach(Device::Disk(disk))).await.unwrap();
    }
}

/// A share of a real virtiofsd can be plugged into a running VM.
async fn plugs_in_a_share(driver: &dyn Driver, fixture: &Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let vmm = launched(driver, &fixture.vm(dir.path())).await;
    soon("boot", vmm.boot()).await.unwrap();
    let program = named("BULKHEAD_VIRTIOFSD");
    let socket = dir.path().join("share");
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("hello"), "world").unwrap();
    let command = Command::new(program).args(["--sandbox", "none", "--socket-path"]);
    let command = command.arg(&socket).arg("--shared-dir").arg(shared);
    let host = RealHost::new().unwrap();
    let server = host.spawn(command).unwrap();
    soon("the share's server", async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    user::chown(&socket, vmm_user()).unwrap();
    let share = Share { id: "fs".into(), tag: "share".into(), socket };
    soon("a share", vmm.attach(Device::Share(share))).await.unwrap();
    // It serves one VM, and exits with it.
    assert_eq!(server.exit.seen(), None);
    soon("stop", vmm.stop()).await.unwrap();
}

/// Plugs in as many disks as the driver supports; two are there already.
async fn fills(driver: &dyn Driver, vmm: &dyn Vmm, dir: &Path) {
    for number in 2..driver.capabilities().disks {
        let disk = disk(dir, &format!("more{number}"), true);
        soon("one more disk", vmm.attach(Device::Disk(disk))).await.unwrap();
    }
}

async fn grows(driver: &dyn Driver, vmm: &dyn Vmm, vm: &VmPlan) {
    let capabilities = driver.capabilities();
    let memory = if capabilities.grow_memory { 3 * SECTION } else { vm.memory };
    let vcpus = if capabilities.grow_vcpus { 2 } else { vm.vcpus };
    soon("growing", vmm.grow(vcpus, memory)).await.unwrap();
    // Less than the VM has changes nothing: it must not shrink.
    soon("growing by nothing", vmm.grow(1, SECTION)).await.unwrap();
    for (vcpus, memory) in [(vm.max_vcpus + 1, 0), (1, vm.max_memory + 1)] {
        let error = soon("a rejection", vmm.grow(vcpus, memory)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
}

/// When any process of a VM exits, the whole VM exits.
async fn exits_as_a_whole(driver: &dyn Driver, fixture: &Fixture) {
    let mut victim = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let vmm = launched(driver, &fixture.vm(dir.path())).await;
        let processes = vmm.processes();
        let Some(mark) = processes.get(victim) else {
            soon("stop", vmm.stop()).await.unwrap();
            return;
        };
        assert!(mark.kill());
        soon("the exit", vmm.exited()).await;
        assert!(!processes.iter().any(ProcessRef::alive), "a process outlives the VM");
        victim += 1;
    }
}

/// A launch that is cancelled at any point leaves nothing.
async fn leaves_nothing_when_cancelled(driver: &dyn Driver, host: &Recorder, fixture: &Fixture) {
    let mut cancelled = 0;
    for patience in [1, 5, 10, 20, 40, 80] {
        let dir = tempfile::tempdir().unwrap();
        let vm = fixture.vm(dir.path());
        let launch = driver.launch(&vm);
        match tokio::time::timeout(Duration::from_millis(patience), launch).await {
            Ok(vmm) => soon("stop", vmm.unwrap().stop()).await.unwrap(),
            Err(_) => cancelled += 1,
        }
        let started = std::mem::take(&mut *host.1.lock());
        soon("the exit of all processes", async {
            while started.iter().any(ProcessRef::alive) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        let file = |entry: &std::fs::DirEntry| entry.file_type().unwrap().is_file();
        assert!(left.iter().all(file), "other files than logs were left: {left:?}");
    }
    assert!(cancelled > 0, "no launch was slow enough to be cancelled");
}

/// The host's socket for the guest's calls to `port`.
fn port(vsock: &Path, port: u32) -> PathBuf {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let dir = open_dir();
    let kernel = dir.path().join("kernel");
    let initramfs = dir.path().join("initramfs");
    std::fs::write(&kernel, b"\x7fELF").unwrap();
    std::fs::write(&initramfs, b"").unwrap();
    let driver = FakeDriver::default();
    driver.plays(|vsock| {
        std::os::unix::net::UnixStream::connect(port(vsock, 1024)).unwrap();
    });
    let fixture = Fixture { kernel, initramfs, guest_runs: true, real: false };
    keeps_the_contract(&driver, &fixture).await;
}

/// QEMU with the programs and the guest that the environment names.
fn qemu() -> (Arc<Recorder>, Qemu, Fixture) {
    let host = recorder();
    let settings = QemuSettings {
        program: named("BULKHEAD_QEMU"),
        vsock_device: named("BULKHEAD_VHOST_DEVICE_VSOCK"),
        accel: if probe_kvm().is_ok() { Accel::Kvm } else { Accel::Tcg },
        launch_deadline: SOON / 2,
        command_deadline: SOON / 2,
    };
    (host.clone(), Qemu::new(host, settings), Fixture::of_environment(true))
}

/// cloud-hypervisor with the program and the guest that the environment names.
fn cloud_hypervisor() -> (Arc<Recorder>, CloudHypervisor, Fixture) {
    let host = recorder();
    let settings = CloudHypervisorSettings {
        program: named("BULKHEAD_CLOUD_HYPERVISOR"),
        launch_deadline: SOON / 2,
        command_deadline: SOON / 2,
    };
    let driver = CloudHypervisor::new(host.clone(), settings);
    (host, driver, Fixture::of_environment(probe_kvm().is_ok()))
}

#[tokio::test]
#[ignore = "needs netns, env:BULKHEAD_QEMU, env:BULKHEAD_VHOST_DEVICE_VSOCK, env:BULKHEAD_GUEST_KERNEL, env:BULKHEAD_GUEST_INITRAMFS"]
async fn qemu_keeps_the_contract() {
    let (host, driver, fixture) = qemu();
    keeps_the_contract(&driver, &fixture).await;
    leaves_nothing_when_cancelled(&driver, &host, &fixture).await;
    prints_launch_times(&driver, &fixture).await;
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_QEMU, env:BULKHEAD_VHOST_DEVICE_VSOCK, env:BULKHEAD_GUEST_KERNEL, env:BULKHEAD_GUEST_INITRAMFS, env:BULKHEAD_VIRTIOFSD"]
async fn qemu_plugs_in_a_share() {
    let (_, driver, fixture) = qemu();
    plugs_in_a_share(&driver, &fixture).await;
}

#[tokio::test]
#[ignore = "needs root, landlock, env:BULKHEAD_QEMU, env:BULKHEAD_VHOST_DEVICE_VSOCK, env:BULKHEAD_GUEST_KERNEL, env:BULKHEAD_GUEST_INITRAMFS"]
async fn qemu_opens_no_other_files() {
    let (_, driver, fixture) = qemu();
    opens_no_other_files(&driver, &fixture).await;
}

#[tokio::test]
#[ignore = "needs netns, env:BULKHEAD_CLOUD_HYPERVISOR, env:BULKHEAD_GUEST_KERNEL, env:BULKHEAD_GUEST_INITRAMFS"]
async fn cloud_hypervisor_keeps_the_contract() {
    let (host, driver, fixture) = cloud_hypervisor();
    keeps_the_contract(&driver, &fixture).await;
    leaves_nothing_when_cancelled(&driver, &host, &fixture).await;
    prints_launch_times(&driver, &fixture).await;
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_CLOUD_HYPERVISOR, env:BULKHEAD_GUEST_KERNEL, env:BULKHEAD_GUEST_INITRAMFS, env:BULKHEAD_VIRTIOFSD"]
async fn cloud_hypervisor_plugs_in_a_share() {
    let (_, driver, fixture) = cloud_hypervisor();
    plugs_in_a_share(&driver, &fixture).await;
}

#[tokio::test]
#[ignore = "needs root, landlock, env:BULKHEAD_CLOUD_HYPERVISOR, env:BULKHEAD_GUEST_KERNEL, env:BULKHEAD_GUEST_INITRAMFS"]
async fn cloud_hypervisor_opens_no_other_files() {
    let (_, driver, fixture) = cloud_hypervisor();
    opens_no_other_files(&driver, &fixture).await;
}

/// Prints how long this host takes for what a boot waits for before the guest's first instruction:
/// the best of ten, since the host is shared.
async fn prints_launch_times(driver: &dyn Driver, fixture: &Fixture) {
    let mut best = [Duration::MAX; 3];
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmPlan { console: None, ..fixture.vm(dir.path()) };
        let begun = Instant::now();
        let vmm = launched(driver, &vm).await;
        let made = begun.elapsed();
        soon("boot", vmm.boot()).await.unwrap();
        let runs = begun.elapsed();
        soon("stop", vmm.stop()).await.unwrap();
        let took = [made, runs - made, begun.elapsed() - runs];
        best = std::array::from_fn(|phase| best[phase].min(took[phase]));
    }
    let [made, runs, gone] = best.map(|time| time.as_secs_f64() * 1e3);
    let name = driver.capabilities().name;
    println!("{name}: made in {made:.1} ms, runs after {runs:.1} ms, gone in {gone:.1} ms");
}

/// A VMM cannot open other files of the host.
async fn opens_no_other_files(driver: &dyn Driver, fixture: &Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let other = open_dir();
    let vm = VmPlan { open: Vec::new(), ..fixture.vm(dir.path()) };
    let vmm = launched(driver, &vm).await;
    soon("boot", vmm.boot()).await.unwrap();
    let outside = Device::Disk(disk(other.path(), "a", true));
    let denied = soon("a rejection", vmm.attach(outside)).await.unwrap_err().to_string();
    assert!(denied.contains("Permission denied"), "{denied}");
    let inside = Device::Disk(disk(dir.path(), "b", true));
    soon("a disk", vmm.attach(inside)).await.unwrap();
    soon("stop", vmm.stop()).await.unwrap();
}
