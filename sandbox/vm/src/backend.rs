//! The backend: one handler's settings in one containerd namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use guest_image::GuestImage;
use sandbox_core::{Backend, Error, Id, Kind, LaunchSandbox, Launched, Result};
use sandbox_host::Host;
use vm_driver::{self, Choice, CloudHypervisorSettings, Driver, QemuSettings, choose};

use crate::config::VmConfig;
use crate::environment::Environment;
use crate::launch::launch;
use crate::purge;

/// Launches sandboxes in a VM each.
#[derive(Debug)]
pub struct VmBackend {
    config: Arc<VmConfig>,
    namespace: Id,
    host: Arc<dyn Host>,
}

impl VmBackend {
    /// A backend with the settings `config` (see [`VmConfig::faults`]) for the containers of
    /// containerd's `namespace`.
    pub fn new(config: VmConfig, namespace: Id, host: Arc<dyn Host>) -> Self {
        Self { config: Arc::new(config), namespace, host }
    }

    /// The driver for this host.
    async fn driver(&self, host: Arc<dyn Host>) -> Result<Arc<dyn Driver>> {
        let config = &self.config;
        let launch_deadline = config.timeouts.launch();
        let command_deadline = config.timeouts.launch();
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

    /// A host in whose mount namespace the Pod's files can be mounted unseen, with the files that
    /// the VM's programs read.
    fn with_private_mounts(&self) -> Result<Arc<dyn Host>> {
        let config = &self.config;
        let programs = [&config.cloud_hypervisor, &config.qemu, &config.vsock_device];
        let programs = programs.into_iter().chain(&config.virtiofsd).map(PathBuf::as_path);
        let mut keep = vm_driver::system_files(programs);
        keep.extend([config.guest.clone(), config.root.clone()]);
        Ok(self.host.with_private_mounts(&keep)?)
    }

    /// The guest's kernel and initramfs, unchanged since they were built.
    async fn image(&self) -> Result<GuestImage> {
        let image = GuestImage::open(&self.config.guest)?;
        image.expect_protocol(agent_api::PROTOCOL)?;
        let state = self.config.known();
        let checked = image.clone();
        // It hashes tens of megabytes.
        let check = tokio::task::spawn_blocking(move || checked.verify_cached(&state));
        let lost = |e| Error::new(Kind::Internal, format!("checking the guest image: {e}"));
        check.await.map_err(lost)??;
        Ok(image)
    }
}

#[async_trait]
impl Backend for VmBackend {
    async fn launch(&self, request: LaunchSandbox) -> Result<Launched> {
        let begun = Instant::now();
        let host = self.with_private_mounts()?;
        let (image, driver) = tokio::try_join!(self.image(), self.driver(Arc::clone(&host)))?;
        let environment = Environment {
            config: Arc::clone(&self.config),
            namespace: self.namespace.clone(),
            host,
            driver,
            image,
            prepared: begun.elapsed(),
        };
        launch(Arc::new(environment), request).await
    }

    async fn purge(&self, id: &Id, bundle: &Path) -> Result<()> {
        Ok(purge::container(id, bundle, &self.host).await?)
    }
}
