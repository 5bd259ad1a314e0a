//! What every driver owes its caller, as one test that runs on each of them.
//!
//! The real ones run where the environment names their programs and a guest; otherwise the test
//! says what is missing. The guest is one that dials the host's vsock port 1024 when it is up.

mod recorder;
mod tap;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_core::Kind;
use sandbox_core::host::{Command, Host, ProcessMark, RealHost, can_confine};
use tokio::net::UnixListener;

use self::recorder::{Recorder, recorder};
use self::tap::Tap;
use crate::check::SECTION;
use crate::cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use crate::fake::FakeDriver;
use crate::kvm::probe_kvm;
use crate::qemu::{Accel, Qemu, QemuSettings};
use crate::user;
use crate::vmm::{Device, Disk, Driver, Machine, Nic, Share, Vmm};

/// How long anything but the guest's start may take.
const SOON: Duration = Duration::from_secs(90);
/// How long an emulated guest may take to start on a busy machine.
const GUEST_START: Duration = Duration::from_secs(120);

/// What a driver is tested with.
struct Ground {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Whether guests get anywhere: false where only the monitor can be tested.
    guest_runs: bool,
}

impl Ground {
    /// From the environment, or what is missing there.
    fn of_environment() -> Result<Self, String> {
        let kernel = named("BULKHEAD_GUEST_KERNEL")?;
        Ok(Self { kernel, initramfs: named("BULKHEAD_GUEST_INITRAMFS")?, guest_runs: true })
    }

    fn machine(&self, dir: &Path) -> Machine {
        Machine {
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
            user: monitors_user(),
            open: vec![std::env::temp_dir()],
            console: Some(dir.join("console")),
        }
    }
}

/// Whom monitors run as: only root can start somebody else's processes.
fn monitors_user() -> Option<u32> {
    nix::unistd::geteuid().is_root().then(|| user::of(Path::new("/run/contract")))
}

/// A directory that others come through.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

fn named(variable: &str) -> Result<PathBuf, String> {
    std::env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"))
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Launches a machine, which must succeed.
async fn launched(driver: &dyn Driver, machine: &Machine) -> Arc<dyn Vmm> {
    soon("launch", driver.launch(machine)).await.unwrap()
}

fn disk(dir: &Path, id: &str, read_only: bool) -> Disk {
    let path = dir.join(format!("{id}.img"));
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    user::give(&path, monitors_user()).unwrap();
    Disk { id: id.into(), path, read_only }
}

async fn refused(vmm: &dyn Vmm, device: Device) -> Kind {
    soon("a refusal", vmm.attach(device)).await.unwrap_err().kind()
}

/// The whole contract.
async fn keeps_the_contract(driver: &dyn Driver, ground: &Ground) {
    let capabilities = driver.capabilities();
    assert!(!capabilities.name.is_empty() && capabilities.disks > 0);
    refuses_bad_machines(driver, ground).await;
    lives_and_stops(driver, ground).await;
    ends_whole(driver, ground).await;
}

async fn refuses_bad_machines(driver: &dyn Driver, ground: &Ground) {
    let dir = tempfile::tempdir().unwrap();
    let fine = ground.machine(dir.path());
    let bad = [
        Machine { vcpus: 0, ..fine.clone() },
        Machine { memory: SECTION + 1, ..fine.clone() },
        Machine { kernel: dir.path().join("none"), ..fine.clone() },
        Machine { initramfs: dir.path().join("none"), ..fine.clone() },
    ];
    for machine in bad {
        let error = soon("a refusal", driver.launch(&machine)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");
}

async fn lives_and_stops(driver: &dyn Driver, ground: &Ground) {
    let dir = tempfile::tempdir().unwrap();
    let tap = Tap::new();
    let mut machine = ground.machine(dir.path());
    machine.netns = tap.as_ref().map(|tap| tap.netns.1.clone());
    let vmm = launched(driver, &machine).await;
    assert!(vmm.processes().iter().all(ProcessMark::alive));
    assert!(vmm.vsock().starts_with(dir.path()));

    let (first, second) = (disk(dir.path(), "1a", true), disk(dir.path(), "b2", false));
    vmm.attach(Device::Disk(first.clone())).await.unwrap();
    assert_eq!(refused(&*vmm, Device::Disk(first)).await, Kind::AlreadyExists);
    let bad = Disk { id: "a/b".into(), ..second.clone() };
    assert_eq!(refused(&*vmm, Device::Disk(bad)).await, Kind::InvalidArgument);
    if let Some(tap) = tap {
        let nic = Nic { id: "eth0".into(), mac: [2, 0, 0, 0, 0, 9], mtu: 1400, tap: tap.fd };
        soon("a network interface", vmm.attach(Device::Nic(nic))).await.unwrap();
    }

    let dialled = UnixListener::bind(port(vmm.vsock(), 1024)).unwrap();
    soon("boot", vmm.boot()).await.unwrap();
    let again = vmm.boot().await.unwrap_err();
    assert_eq!(again.kind(), Kind::FailedPrecondition, "{again}");
    if ground.guest_runs {
        let up = tokio::time::timeout(GUEST_START, dialled.accept()).await;
        up.expect("the guest does not dial").unwrap();
    }
    plugs_in_and_out(&*vmm, second, dir.path(), ground.guest_runs).await;
    shares(&*vmm, dir.path()).await;
    grows(driver, &*vmm, &machine).await;
    fills(driver, &*vmm, dir.path()).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), vmm.exited()).await.is_err());

    let processes = vmm.processes();
    soon("stop", vmm.stop()).await.unwrap();
    assert!(!processes.iter().any(ProcessMark::alive), "a process is left");
    soon("the end", vmm.exited()).await;
    soon("the second stop", vmm.stop()).await.unwrap();
    let late = Device::Disk(disk(dir.path(), "late", true));
    assert_eq!(refused(&*vmm, late).await, Kind::Unavailable);
    assert!(!vmm.vsock().exists(), "the vsock's socket is left");
    println!("{}", std::fs::read_to_string(dir.path().join("console")).unwrap_or_default());
}

async fn plugs_in_and_out(vmm: &dyn Vmm, disk: Disk, dir: &Path, guest_runs: bool) {
    let gone = Disk { path: dir.join("none.img"), ..disk.clone() };
    soon("a refusal", vmm.attach(Device::Disk(gone))).await.unwrap_err();
    let share = |id: &str, socket: PathBuf| {
        Device::Share(Share { id: id.into(), tag: "share".into(), socket })
    };
    soon("a refusal", vmm.attach(share("fs", dir.join("nobody")))).await.unwrap_err();
    // What failed has left its place.
    soon("a disk", vmm.attach(Device::Disk(disk.clone()))).await.unwrap();
    soon("nothing", vmm.detach("unknown")).await.unwrap();
    if guest_runs {
        soon("unplugging", vmm.detach(&disk.id)).await.unwrap();
        soon("nothing", vmm.detach(&disk.id)).await.unwrap();
        soon("a disk again", vmm.attach(Device::Disk(disk))).await.unwrap();
    }
}

/// Plugs a share in, where there is a program to serve it.
async fn shares(vmm: &dyn Vmm, dir: &Path) {
    let program = match named("BULKHEAD_VIRTIOFSD") {
        Ok(program) => program,
        Err(missing) => return println!("no share is plugged in: {missing}"),
    };
    let (socket, shared) = (dir.join("share"), dir.join("shared"));
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
    user::give(&socket, monitors_user()).unwrap();
    let share = Share { id: "fs".into(), tag: "share".into(), socket };
    soon("a share", vmm.attach(Device::Share(share))).await.unwrap();
    // It serves one machine, with which it ends.
    assert_eq!(server.exit.seen(), None);
}

/// As many disks as the driver says fit, of which two are there.
async fn fills(driver: &dyn Driver, vmm: &dyn Vmm, dir: &Path) {
    for number in 2..driver.capabilities().disks {
        let disk = disk(dir, &format!("more{number}"), true);
        soon("one more disk", vmm.attach(Device::Disk(disk))).await.unwrap();
    }
}

async fn grows(driver: &dyn Driver, vmm: &dyn Vmm, machine: &Machine) {
    let capabilities = driver.capabilities();
    let memory = if capabilities.grow_memory { 3 * SECTION } else { machine.memory };
    let vcpus = if capabilities.grow_vcpus { 2 } else { machine.vcpus };
    soon("growing", vmm.grow(vcpus, memory)).await.unwrap();
    // What is there already is no reason to do anything, least of all to shrink.
    soon("growing by nothing", vmm.grow(1, SECTION)).await.unwrap();
    for (vcpus, memory) in [(machine.max_vcpus + 1, 0), (1, machine.max_memory + 1)] {
        let error = soon("a refusal", vmm.grow(vcpus, memory)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
}

/// The end of any of a machine's processes is the machine's.
async fn ends_whole(driver: &dyn Driver, ground: &Ground) {
    let mut victim = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let vmm = launched(driver, &ground.machine(dir.path())).await;
        let processes = vmm.processes();
        let Some(mark) = processes.get(victim) else {
            soon("stop", vmm.stop()).await.unwrap();
            return;
        };
        assert!(mark.kill());
        soon("the end", vmm.exited()).await;
        assert!(!processes.iter().any(ProcessMark::alive), "a process outlives the machine");
        victim += 1;
    }
}

/// A launch that the caller gives up leaves nothing, however far it has come.
async fn leaves_nothing_when_given_up(driver: &dyn Driver, host: &Recorder, ground: &Ground) {
    let mut given_up = 0;
    for patience in [1, 5, 10, 20, 40, 80] {
        let dir = tempfile::tempdir().unwrap();
        let machine = ground.machine(dir.path());
        let launch = driver.launch(&machine);
        match tokio::time::timeout(Duration::from_millis(patience), launch).await {
            Ok(vmm) => soon("stop", vmm.unwrap().stop()).await.unwrap(),
            Err(_) => given_up += 1,
        }
        let started = std::mem::take(&mut *host.1.lock());
        soon("the end of what was started", async {
            while started.iter().any(ProcessMark::alive) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        let file = |entry: &std::fs::DirEntry| entry.file_type().unwrap().is_file();
        assert!(left.iter().all(file), "more than logs is left: {left:?}");
    }
    assert!(given_up > 0, "no launch was slow enough to be given up");
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
    let (kernel, initramfs) = (dir.path().join("kernel"), dir.path().join("initramfs"));
    std::fs::write(&kernel, b"\x7fELF").unwrap();
    std::fs::write(&initramfs, b"").unwrap();
    let driver = FakeDriver::default();
    driver.plays(|vsock| {
        std::os::unix::net::UnixStream::connect(port(vsock, 1024)).unwrap();
    });
    keeps_the_contract(&driver, &Ground { kernel, initramfs, guest_runs: true }).await;
}

#[tokio::test]
async fn qemu_keeps_the_contract() {
    let ready = || -> Result<(QemuSettings, Ground), String> {
        let settings = QemuSettings {
            program: named("BULKHEAD_QEMU")?,
            vsock_device: named("BULKHEAD_VHOST_DEVICE_VSOCK")?,
            accel: if probe_kvm().is_ok() { Accel::Kvm } else { Accel::Tcg },
            launch_deadline: SOON / 2,
            command_deadline: SOON / 2,
        };
        Ok((settings, Ground::of_environment()?))
    };
    match ready() {
        Ok((settings, ground)) => {
            let host = recorder();
            let driver = Qemu::new(host.clone(), settings);
            keeps_the_contract(&driver, &ground).await;
            leaves_nothing_when_given_up(&driver, &host, &ground).await;
            opens_nothing_elsewhere(&driver, &ground).await;
            tells_how_long_a_launch_takes(&driver, &ground).await;
        }
        Err(missing) => println!("QEMU is not tested: {missing}"),
    }
}

#[tokio::test]
async fn cloud_hypervisor_keeps_the_contract() {
    let ready = || -> Result<(PathBuf, Ground), String> {
        let mut ground = Ground::of_environment()?;
        ground.guest_runs = probe_kvm().is_ok();
        Ok((named("BULKHEAD_CLOUD_HYPERVISOR")?, ground))
    };
    let (program, ground) = match ready() {
        Ok(ready) => ready,
        Err(missing) => return println!("cloud-hypervisor is not tested: {missing}"),
    };
    let host = recorder();
    let deadline = SOON / 2;
    let settings =
        CloudHypervisorSettings { program, launch_deadline: deadline, command_deadline: deadline };
    let driver = CloudHypervisor::new(host.clone(), settings);
    keeps_the_contract(&driver, &ground).await;
    leaves_nothing_when_given_up(&driver, &host, &ground).await;
    opens_nothing_elsewhere(&driver, &ground).await;
    tells_how_long_a_launch_takes(&driver, &ground).await;
}

/// Prints how long this host takes for what a boot waits for before the guest's first instruction:
/// the best of a few, since others use the host as well.
async fn tells_how_long_a_launch_takes(driver: &dyn Driver, ground: &Ground) {
    let mut best = [Duration::MAX; 3];
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine { console: None, ..ground.machine(dir.path()) };
        let begun = Instant::now();
        let vmm = launched(driver, &machine).await;
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

/// Root's other files are out of a monitor's reach.
async fn opens_nothing_elsewhere(driver: &dyn Driver, ground: &Ground) {
    let (dir, other) = (tempfile::tempdir().unwrap(), open_dir());
    let machine = Machine { open: Vec::new(), ..ground.machine(dir.path()) };
    let vmm = launched(driver, &machine).await;
    soon("boot", vmm.boot()).await.unwrap();
    let outside = Device::Disk(disk(other.path(), "a", true));
    match soon("a refusal", vmm.attach(outside)).await {
        Err(refusal) => assert!(refusal.to_string().contains("Permission denied"), "{refusal}"),
        Ok(()) => assert!(!can_confine(), "it is not confined"),
    }
    let inside = Device::Disk(disk(dir.path(), "b", true));
    soon("a disk", vmm.attach(inside)).await.unwrap();
    soon("stop", vmm.stop()).await.unwrap();
}
