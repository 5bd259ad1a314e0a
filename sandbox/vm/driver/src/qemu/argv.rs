//! QEMU's command line for a VM.

use std::ffi::OsString;

use crate::growth::modules;
use crate::vmm::VmPlan;

/// The file descriptors that QEMU inherits.
pub(super) mod fd {
    pub(crate) const QMP: i32 = 3;
    pub(crate) const VSOCK: i32 = 4;
    pub(crate) const CONSOLE: i32 = 5;
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's processor.
    Kvm,
    /// QEMU's translator; many times slower.
    Tcg,
}

/// Bridges for hotplugged devices, and the slots of each; slot 0 stays free. Two bridges slow the
/// guest's boot less than many PCIe root ports, each of which holds one device.
pub(super) const BRIDGES: usize = 2;
pub(super) const BRIDGE_SLOTS: usize = 31;
/// The maximum number of memory modules; the last one takes all the rest.
pub(super) const MODULES_MAX: u64 = 16;
/// Size of the cache of translated code in MiB; QEMU's default is 1 GiB.
const CODE_CACHE: u32 = 128;

/// The whole command line but the program. QEMU finds its VMM, the vsock device and the
/// console at the numbers in [`fd`].
pub(super) fn argv(vm: &VmPlan, accel: Accel) -> Vec<OsString> {
    let mut argv: Vec<OsString> = Vec::new();
    let mut add = |args: &[&str]| argv.extend(args.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]);
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    add(&["-sandbox", sandbox]);
    let chipset = "q35,memory-backend=ram,vmport=off,hpet=off,smbus=off,sata=off,usb=off,i8042=off";
    add(&["-machine", chipset]);
    match accel {
        Accel::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        // QEMU 7.2 emulates cmpxchg16b with wrong flags; guests then fail at random.
        Accel::Tcg => {
            add(&["-accel", &format!("tcg,tb-size={CODE_CACHE}"), "-cpu", "max,-cx16"]);
        }
    }
    add(&["-smp", &format!("cpus={},maxcpus={}", vm.vcpus, vm.max_vcpus)]);
    let size = vm.memory;
    match modules(vm, MODULES_MAX) {
        0 => add(&["-m", &format!("size={size}B")]),
        slots => {
            let most = vm.max_memory;
            add(&["-m", &format!("size={size}B,slots={slots},maxmem={most}B")]);
        }
    }
    // The vsock is a vhost-user device too, so memory is always shared.
    add(&["-object", &format!("memory-backend-memfd,id=ram,size={size}B,share=on")]);
    add(&[
        "-chardev",
        &format!("socket,id=qmp,fd={}", fd::QMP),
        "-mon",
        "chardev=qmp,mode=control",
    ]);
    add(&["-chardev", &format!("socket,id=vsock,fd={}", fd::VSOCK)]);
    add(&["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    add(&[
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]);
    add(&["-device", "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=on"]);
    for bridge in 0..BRIDGES {
        add(&["-device", &format!("pcie-pci-bridge,id=bridge{bridge},addr={:#x}", 0x10 + bridge)]);
    }
    if vm.console.is_some() {
        add(&["-chardev", &format!("socket,id=console,fd={}", fd::CONSOLE)]);
        add(&["-serial", "chardev:console"]);
    }
    argv.extend(["-kernel".into(), vm.kernel.clone().into()]);
    argv.extend(["-initrd".into(), vm.initramfs.clone().into()]);
    argv.extend(["-append".into(), cmdline(vm, accel).into()]);
    argv
}

/// The kernel's command line, completed by the driver.
fn cmdline(vm: &VmPlan, accel: Accel) -> String {
    let mut words = vec![vm.cmdline.as_str()];
    if accel == Accel::Tcg {
        // Timer checks and mitigations make no sense with emulation.
        words.push("no_timer_check tsc=reliable mitigations=off");
    }
    if vm.console.is_some() {
        words.push("console=ttyS0");
    }
    words.join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::tests::vm;

    fn line(vm: &VmPlan, accel: Accel) -> String {
        let argv = argv(vm, accel);
        argv.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn describes_the_vm() {
        let mut vm = vm(Path::new("/run/m"));
        let emulated = line(&vm, Accel::Tcg);
        assert!(emulated.contains("-m size=268435456B,slots=2,maxmem=536870912B "));
        assert!(emulated.contains(" -cpu max,-cx16 ") && emulated.contains("cpus=1,maxcpus=2"));
        assert!(emulated.contains("size=268435456B,share=on"));
        assert!(emulated.ends_with("quiet panic=-1 no_timer_check tsc=reliable mitigations=off"));
        assert!(!emulated.contains("-serial"));

        vm.max_memory = vm.memory;
        vm.console = Some("/run/m/console".into());
        let fast = line(&vm, Accel::Kvm);
        assert!(fast.contains("-accel kvm -cpu host ") && fast.contains("-m size=268435456B "));
        assert!(fast.contains("-serial chardev:console "));
        assert!(fast.ends_with("-append quiet panic=-1 console=ttyS0"));
    }
}
