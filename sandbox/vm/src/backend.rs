//! The backend: one handler's settings in one containerd namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use guest_image::Guest;
use sandbox_core::host::Host;
use sandbox_core::{Backend, Id, Result, Sandbox};
use sha2::{Digest, Sha256};
use vm_driver::{self as driver, Choice, CloudHypervisorSettings, Driver, QemuSettings, choose};

use crate::config::VmConfig;
use crate::purge;
use crate::sandbox::VmSandbox;

/// Makes machines.
#[derive(Debug)]
pub struct VmBackend {
    config: Arc<VmConfig>,
    namespace: Id,
    host: Arc<dyn Host>,
}

/// What a sandbox boots its machine with.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) config: Arc<VmConfig>,
    pub(crate) namespace: Id,
    /// With a mount namespace of its own, where machines are served with theirs.
    pub(crate) host: Arc<dyn Host>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) image: Guest,
    /// How long it took to have these.
    pub(crate) prepared: Duration,
}

impl VmBackend {
    /// A backend with the settings `config` (see [`VmConfig::faults`]) for the containers of
    /// containerd's `namespace`.
    pub fn new(config: VmConfig, namespace: Id, host: Arc<dyn Host>) -> Self {
        Self { config: Arc::new(config), namespace, host }
    }

    /// What runs the machines on this host.
    async fn driver(&self, host: Arc<dyn Host>) -> Result<Arc<dyn Driver>> {
        let config = &self.config;
        let (launch_deadline, command_deadline) =
            (config.timeouts.launch(), config.timeouts.launch());
        let choice = Choice {
            hypervisor: config.hypervisor,
            allow_emulation: config.allow_emulation,
            cloud_hypervisor: CloudHypervisorSettings {
                program: config.cloud_hypervisor.clone(),
                launch_deadline,
                command_deadline,
            },
            qemu: QemuSettings {
                program: config.qemu.clone(),
                vsock_device: config.vsock_device.clone(),
                launch_deadline,
                command_deadline,
                ..QemuSettings::default()
            },
        };
        choose(host, choice, config.known().join("kvm.json")).await
    }

    /// A host that shows nobody what is mounted for the machine, with what its programs read.
    fn apart(&self) -> Result<Arc<dyn Host>> {
        let config = &self.config;
        let programs = [&config.cloud_hypervisor, &config.qemu, &config.vsock_device];
        let programs = programs.into_iter().chain(&config.virtiofsd).map(PathBuf::as_path);
        let mut keep = driver::system_files(programs);
        keep.extend([config.guest.clone(), config.root.clone()]);
        Ok(self.host.with_private_mounts(&keep)?)
    }

    /// The guest's kernel and initramfs, unchanged since they were built.
    async fn image(&self) -> Result<Guest> {
        let image = Guest::open(&self.config.guest)?;
        image.expect_protocol(agent_api::PROTOCOL)?;
        // Hashing tens of megabytes: not on the thread that serves.
        let (state, checked) = (self.config.known(), image.clone());
        let check = tokio::task::spawn_blocking(move || checked.verify_cached(&state));
        let lost = |e: tokio::task::JoinError| {
            let message = format!("checking the guest image: {e}");
            sandbox_core::Error::new(sandbox_core::Kind::Internal, message)
        };
        check.await.map_err(lost)??;
        Ok(image)
    }
}

#[async_trait]
impl Backend for VmBackend {
    async fn open(&self) -> Result<Arc<dyn Sandbox>> {
        let begun = Instant::now();
        let host = self.apart()?;
        let (image, driver) = tokio::try_join!(self.image(), self.driver(Arc::clone(&host)))?;
        Ok(Arc::new(VmSandbox::new(Arc::new(Means {
            config: Arc::clone(&self.config),
            namespace: self.namespace.clone(),
            host,
            driver,
            image,
            prepared: begun.elapsed(),
        }))))
    }

    async fn purge(&self, id: &Id, bundle: &Path) -> Result<()> {
        Ok(purge::container(id, bundle, &self.host).await?)
    }
}

/// A machine's directory: short, and the same for whoever knows namespace and id.
pub(crate) fn machine_dir(root: &Path, namespace: &Id, id: &Id) -> PathBuf {
    let digest = Sha256::digest(format!("{namespace}/{id}"));
    let name: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    root.join(name)
}
