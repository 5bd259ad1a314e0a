//! A driver whose VMs have no process, for tests of a backend.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use sandbox_host::{Error, Exit, ExitWatch, Kind, ProcessRef, Result};
use tokio::sync::watch;

use crate::check::{check, check_disk, check_files, check_share, vsock};
use crate::error::DriverError;
use crate::growth::{Growth, modules};
use crate::place::Places;
use crate::vmm::{Capabilities, Device, Driver, VmPlan, Vmm};

const NAME: &str = "fake";
/// Slots for devices.
const PLACES: usize = 16;
/// The maximum number of memory modules.
const MODULES_MAX: u64 = 8;

/// A call of a driver or of one of its VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Driver::launch`], with the VM.
    Launch(Box<VmPlan>),
    /// [`Vmm::attach`], with the device's id.
    Attach(String),
    /// [`Vmm::detach`], with the disk's id.
    Detach(String),
    /// [`Vmm::boot`].
    Boot,
    /// [`Vmm::grow`], with processors and bytes.
    Grow(u32, u64),
    /// [`Vmm::stop`].
    Stop,
}

impl Call {
    fn verb(&self) -> &'static str {
        match self {
            Self::Launch(_) => "launch",
            Self::Attach(_) => "attach",
            Self::Detach(_) => "detach",
            Self::Boot => "boot",
            Self::Grow(..) => "grow",
            Self::Stop => "stop",
        }
    }
}

/// Plays the guest of a VM that boots, whose vsock is at the path.
type Guest = Arc<dyn Fn(&Path) + Send + Sync>;

/// Records every call and fails those that a test chooses. Its VMs exit when they are stopped or
/// when the test makes them.
///
/// A VM's vsock is a path in its directory. A test that plays the guest connects to
/// `<vsock>_<port>` to call the host, and listens at `<vsock>` to be called.
#[derive(Clone)]
pub struct FakeDriver(Arc<Mutex<State>>);

struct State {
    capabilities: Capabilities,
    journal: Vec<Call>,
    failures: VecDeque<(&'static str, Kind, String)>,
    guest: Option<Guest>,
    ends: Vec<watch::Sender<Option<Exit>>>,
}

impl Default for FakeDriver {
    fn default() -> Self {
        Self::new(Capabilities {
            name: NAME,
            emulated: false,
            disks: PLACES / 2,
            grow_memory: true,
            grow_vcpus: true,
            stream_write_max: None,
        })
    }
}

impl fmt::Debug for FakeDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDriver").field("journal", &self.state().journal).finish_non_exhaustive()
    }
}

impl FakeDriver {
    /// A driver with these capabilities.
    pub fn new(capabilities: Capabilities) -> Self {
        Self(Arc::new(Mutex::new(State {
            capabilities,
            journal: Vec::new(),
            failures: VecDeque::new(),
            guest: None,
            ends: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Plays the guest of every VM that boots: `guest` gets its vsock's path.
    pub fn plays(&self, guest: impl Fn(&Path) + Send + Sync + 'static) {
        self.state().guest = Some(Arc::new(guest));
    }

    /// Makes the next call of `verb` (`launch`, `attach`, `detach`, `boot`, `grow` or `stop`)
    /// fail. Several are queued.
    pub fn fails(&self, verb: &'static str, kind: Kind, message: impl Into<String>) {
        self.state().failures.push_back((verb, kind, message.into()));
    }

    /// Every call so far.
    pub fn journal(&self) -> Vec<Call> {
        self.state().journal.clone()
    }

    /// Makes every VM exit, as when its VMM crashes.
    pub fn ends(&self, status: u32) {
        for end in self.state().ends.drain(..) {
            finish(&end, status);
        }
    }

    /// Records `call`, and fails it if a failure is queued for it.
    fn called(&self, call: Call) -> Result<()> {
        let mut state = self.state();
        let verb = call.verb();
        state.journal.push(call);
        match state.failures.iter().position(|(failing, ..)| *failing == verb) {
            Some(at) => match state.failures.remove(at) {
                Some((_, kind, message)) => Err(Error::new(kind, message)),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// Reports the exit of a VM; only the first one counts.
fn finish(end: &watch::Sender<Option<Exit>>, status: u32) {
    end.send_if_modified(|exit| {
        let first = exit.is_none();
        exit.get_or_insert_with(|| Exit::now(status));
        first
    });
}

#[async_trait]
impl Driver for FakeDriver {
    fn capabilities(&self) -> Capabilities {
        self.state().capabilities
    }

    async fn launch(&self, vm: &VmPlan) -> Result<Arc<dyn Vmm>> {
        self.called(Call::Launch(Box::new(vm.clone())))?;
        check(vm)?;
        check_files(vm)?;
        let (end, exited) = ExitWatch::pair();
        self.state().ends.push(end.clone());
        Ok(Arc::new(FakeVmm {
            driver: self.clone(),
            vsock: vsock(&vm.dir),
            places: Places::new(PLACES),
            growth: Mutex::new(Growth::of(vm, modules(vm, MODULES_MAX))),
            booted: Mutex::new(false),
            end,
            exited,
        }))
    }
}

/// A VM of a [`FakeDriver`].
#[derive(Debug)]
struct FakeVmm {
    driver: FakeDriver,
    vsock: PathBuf,
    places: Places,
    growth: Mutex<Growth>,
    booted: Mutex<bool>,
    end: watch::Sender<Option<Exit>>,
    exited: ExitWatch,
}

impl FakeVmm {
    fn called(&self, call: Call) -> Result<()> {
        self.driver.called(call)?;
        match self.exited.seen() {
            Some(exit) => {
                let status = exit.status;
                Err(DriverError::Exited { program: NAME, status, log: String::new() }.into())
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    /// No process has this id.
    fn pid(&self) -> u32 {
        u32::MAX
    }

    fn processes(&self) -> Vec<ProcessRef> {
        Vec::new()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn attach(&self, device: Device) -> Result<()> {
        self.called(Call::Attach(device.id().to_owned()))?;
        match &device {
            Device::Nic(_) => {}
            Device::Disk(disk) => drop(check_disk(disk)?),
            Device::Share(share) => check_share(share)?,
        }
        self.places.take(device.id())?;
        Ok(())
    }

    async fn detach(&self, id: &str) -> Result<()> {
        self.called(Call::Detach(id.to_owned()))?;
        if self.places.has(id) && !*self.booted.lock() {
            return Err(DriverError::State("is not running yet: nothing can be unplugged").into());
        }
        self.places.free(id);
        Ok(())
    }

    async fn boot(&self) -> Result<()> {
        self.called(Call::Boot)?;
        if std::mem::replace(&mut *self.booted.lock(), true) {
            return Err(DriverError::State("is already running").into());
        }
        let guest = self.driver.state().guest.clone();
        if let Some(guest) = guest {
            guest(&self.vsock);
        }
        Ok(())
    }

    async fn grow(&self, vcpus: u32, memory: u64) -> Result<()> {
        self.called(Call::Grow(vcpus, memory))?;
        let mut growth = self.growth.lock();
        growth.check(vcpus, memory)?;
        let module = growth.next_module(memory);
        if module > 0 {
            growth.got_module(module);
        }
        let vcpus = vcpus.max(growth.vcpus());
        growth.got_vcpus(vcpus);
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.driver.called(Call::Stop)?;
        finish(&self.end, Exit::KILLED);
        Ok(())
    }

    async fn exited(&self) -> Exit {
        self.exited.wait().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fails_and_exits_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        let initramfs = dir.path().join("initramfs");
        std::fs::write(&kernel, b"\x7fELF").unwrap();
        std::fs::write(&initramfs, b"").unwrap();
        let vm = crate::check::tests::vm(dir.path());
        let vm = VmPlan { kernel, initramfs, ..vm };
        let driver = FakeDriver::default();
        driver.fails("launch", Kind::Unavailable, "no");
        let refused = driver.launch(&vm).await.unwrap_err();
        assert_eq!((refused.kind(), refused.to_string()), (Kind::Unavailable, "no".to_owned()));

        let vmm = driver.launch(&vm).await.unwrap();
        driver.fails("grow", Kind::DeadlineExceeded, "late");
        vmm.boot().await.unwrap();
        assert_eq!(vmm.grow(2, 0).await.unwrap_err().kind(), Kind::DeadlineExceeded);
        vmm.grow(2, 0).await.unwrap();
        driver.ends(3);
        assert_eq!(vmm.exited().await.status, 3);
        vmm.stop().await.unwrap();
        assert_eq!(vmm.exited().await.status, 3);
        let journal = driver.journal();
        assert_eq!(journal.len(), 6);
        assert_eq!(journal[2..], [Call::Boot, Call::Grow(2, 0), Call::Grow(2, 0), Call::Stop]);
    }
}
