//! Which driver a host gets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_host::{Host, Result, can_confine, find_program, record};
use serde::{Deserialize, Serialize};

use crate::cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use crate::error::DriverError;
use crate::kvm::probe_kvm;
use crate::qemu::{Accel, Qemu, QemuSettings};
use crate::vmm::Driver;

/// Changes with each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which virtual machine monitor runs the Pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// cloud-hypervisor where it is installed and KVM runs a guest, else QEMU.
    #[default]
    Auto,
    /// cloud-hypervisor; needs KVM.
    CloudHypervisor,
    /// QEMU, with KVM or, where allowed, emulated.
    Qemu,
}

/// The configuration of the drivers.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The VMM to use.
    pub hypervisor: Hypervisor,
    /// Whether guests may run on emulated processors where KVM runs none.
    pub allow_emulation: bool,
    /// How cloud-hypervisor is run.
    pub cloud_hypervisor: CloudHypervisorSettings,
    /// How QEMU is run, but for what executes the guest's instructions.
    pub qemu: QemuSettings,
}

/// The driver that was chosen.
#[derive(Debug, PartialEq, Eq)]
enum Chosen {
    CloudHypervisor,
    Qemu(Accel),
}

/// The driver for this host: cloud-hypervisor where KVM really runs guests, else QEMU with KVM,
/// and QEMU with emulated processors only where that is allowed. A positive result of the KVM probe
/// is cached in the file `known` until the host reboots.
///
/// # Errors
///
/// What is missing, and how to provide it.
pub async fn choose(
    host: Arc<dyn Host>,
    choice: Choice,
    known: PathBuf,
) -> Result<Arc<dyn Driver>> {
    let kvm = tokio::task::spawn_blocking(move || kvm_once(&known, probe_kvm)).await;
    let kvm = kvm.unwrap_or_else(|error| Err(format!("its probe failed: {error}")));
    let installed = |program: &Path| find_program(program).is_some();
    if !can_confine() {
        tracing::warn!(
            "this host's kernel has no Landlock (Linux 5.13 and later, where it is switched on): \
             VMMs may open any file that their user may"
        );
    }
    Ok(match pick(&choice, kvm, installed)? {
        Chosen::CloudHypervisor => Arc::new(CloudHypervisor::new(host, choice.cloud_hypervisor)),
        Chosen::Qemu(accel) => {
            if accel == Accel::Tcg {
                tracing::warn!("this host's Pods run on emulated processors, many times slower");
            }
            Arc::new(Qemu::new(host, QemuSettings { accel, ..choice.qemu }))
        }
    })
}

/// Probes KVM, unless it is known to run guests since this host's boot. A negative result is not
/// cached: the administrator may fix it at any time.
fn kvm_once(
    known: &Path,
    probe: impl FnOnce() -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    if !boot.is_empty() && matches!(record::load::<String>(known), Ok(Some(then)) if then == boot) {
        return Ok(());
    }
    probe()?;
    record::cache(known, &boot);
    Ok(())
}

fn pick(
    choice: &Choice,
    kvm: std::result::Result<(), String>,
    installed: impl Fn(&Path) -> bool,
) -> std::result::Result<Chosen, DriverError> {
    let there = |what, program: &Path, fix| match installed(program) {
        true => Ok(()),
        false => Err(DriverError::Missing { what, program: program.to_owned(), fix }),
    };
    let cloud_hypervisor = || {
        let fix = "install it (version 51 or later) or set its path in the handler's file";
        there("cloud-hypervisor", &choice.cloud_hypervisor.program, fix)
    };
    let qemu = || {
        let fix = "install it (Debian's package is qemu-system-x86) or set its path in the handler's file";
        there("QEMU", &choice.qemu.program, fix)?;
        let fix =
            "install it (`cargo install vhost-device-vsock`) or set its path in the handler's file";
        there("QEMU's vsock device", &choice.qemu.vsock_device, fix)
    };
    match (choice.hypervisor, kvm) {
        (Hypervisor::Auto | Hypervisor::CloudHypervisor, Ok(())) if cloud_hypervisor().is_ok() => {
            Ok(Chosen::CloudHypervisor)
        }
        // Where neither is installed, the one to install is cloud-hypervisor.
        (Hypervisor::Auto, Ok(())) => match qemu() {
            Ok(()) => Ok(Chosen::Qemu(Accel::Kvm)),
            Err(_) => cloud_hypervisor().map(|()| Chosen::CloudHypervisor),
        },
        (Hypervisor::CloudHypervisor, Ok(())) => {
            cloud_hypervisor().map(|()| Chosen::CloudHypervisor)
        }
        (Hypervisor::CloudHypervisor, Err(why)) => Err(DriverError::Kvm(
            why,
            "cloud-hypervisor needs it: use a host with (nested) virtualization, or set \
             hypervisor = \"qemu\" and allow_emulation = true for development",
        )),
        (Hypervisor::Qemu, Ok(())) => qemu().map(|()| Chosen::Qemu(Accel::Kvm)),
        (Hypervisor::Auto | Hypervisor::Qemu, Err(_)) if choice.allow_emulation => {
            qemu().map(|()| Chosen::Qemu(Accel::Tcg))
        }
        (Hypervisor::Auto | Hypervisor::Qemu, Err(why)) => Err(DriverError::Kvm(
            why,
            "use a host with (nested) virtualization, or set allow_emulation = true for development",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";
    const QEMU: &str = "qemu-system-x86_64";
    const VSOCK: &str = "vhost-device-vsock";

    fn picked(
        hypervisor: Hypervisor,
        allow_emulation: bool,
        kvm: bool,
        installed: &[&str],
    ) -> std::result::Result<Chosen, String> {
        let choice = Choice {
            hypervisor,
            allow_emulation,
            cloud_hypervisor: CloudHypervisorSettings::default(),
            qemu: QemuSettings::default(),
        };
        let kvm = if kvm { Ok(()) } else { Err("no such file".to_owned()) };
        pick(&choice, kvm, |program| installed.iter().any(|one| program == Path::new(one)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn chooses_the_best_installed_driver() {
        let all = [CLOUD_HYPERVISOR, QEMU, VSOCK];
        assert_eq!(picked(Hypervisor::Auto, true, true, &all), Ok(Chosen::CloudHypervisor));
        assert_eq!(picked(Hypervisor::Auto, false, true, &all[1..]), Ok(Chosen::Qemu(Accel::Kvm)));
        assert_eq!(picked(Hypervisor::Auto, true, false, &all), Ok(Chosen::Qemu(Accel::Tcg)));
        assert_eq!(picked(Hypervisor::Qemu, false, true, &all), Ok(Chosen::Qemu(Accel::Kvm)));
        assert_eq!(picked(Hypervisor::Qemu, true, false, &all), Ok(Chosen::Qemu(Accel::Tcg)));
        let only = [CLOUD_HYPERVISOR];
        assert_eq!(
            picked(Hypervisor::CloudHypervisor, false, true, &only),
            Ok(Chosen::CloudHypervisor)
        );
    }

    #[test]
    fn a_known_kvm_is_not_probed() {
        let dir = tempfile::tempdir().unwrap();
        let known = dir.path().join("known/kvm.json");
        let fails = || Err("no guest runs".to_owned());
        let unexpected =
            || -> std::result::Result<(), String> { panic!("KVM is probed though it is known") };
        assert_eq!(kvm_once(&known, fails), fails(), "a failure");
        assert_eq!(kvm_once(&known, fails), fails(), "a failure is not kept");
        assert_eq!(kvm_once(&known, || Ok(())), Ok(()));
        assert_eq!(kvm_once(&known, unexpected), Ok(()));
        record::cache(&known, &"another boot's".to_owned());
        assert_eq!(kvm_once(&known, fails), fails(), "the host was booted since");
    }

    #[test]
    fn names_what_is_missing() {
        let all = [CLOUD_HYPERVISOR, QEMU, VSOCK];
        let says = |hypervisor, emulation, kvm, installed: &[&str], text: &str| {
            let error = picked(hypervisor, emulation, kvm, installed).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        says(
            Hypervisor::Auto,
            false,
            false,
            &all,
            "KVM runs no guest (no such file); use a host with",
        );
        says(
            Hypervisor::Auto,
            true,
            false,
            &[QEMU],
            "there is no executable vhost-device-vsock; install",
        );
        says(Hypervisor::Auto, true, true, &[], "there is no executable cloud-hypervisor; install");
        says(Hypervisor::CloudHypervisor, true, false, &all, "set hypervisor = \"qemu\"");
        says(
            Hypervisor::CloudHypervisor,
            true,
            true,
            &[QEMU, VSOCK],
            "cloud-hypervisor is not installed",
        );
        says(Hypervisor::Qemu, false, false, &all, "allow_emulation = true");
        says(Hypervisor::Qemu, false, true, &[VSOCK], "QEMU is not installed");
    }
}
