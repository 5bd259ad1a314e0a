//! QEMU's command line for a machine.

use std::ffi::OsString;

use crate::growth::modules;
use crate::vmm::Machine;

/// The numbers under which QEMU gets its file descriptors.
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

/// Bridges for devices that come by QMP, and what each holds: slot 0 stays free. Two cost the
/// guest's start less than a handful of PCIe root ports, each of which holds but one device.
pub(super) const BRIDGES: usize = 2;
pub(super) const BRIDGE_SLOTS: usize = 31;
/// The most memory modules; the last one takes all that is left.
pub(super) const MODULES_MAX: u64 = 16;
/// Bounds the cache of translated code, in MiB; QEMU's own bound is 1 GiB.
const CODE_CACHE: u32 = 128;

/// The whole command line but the program. QEMU finds its monitor, the vsock device and the
/// console at the numbers in [`fd`].
pub(super) fn argv(machine: &Machine, accel: Accel) -> Vec<OsString> {
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
    add(&["-smp", &format!("cpus={},maxcpus={}", machine.vcpus, machine.max_vcpus)]);
    let size = machine.memory;
    match modules(machine, MODULES_MAX) {
        0 => add(&["-m", &format!("size={size}B")]),
        slots => {
            let most = machine.max_memory;
            add(&["-m", &format!("size={size}B,slots={slots},maxmem={most}B")]);
        }
    }
    // The vsock is a vhost-user device too, so memory is shared whatever the machine says.
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
    if machine.console.is_some() {
        add(&["-chardev", &format!("socket,id=console,fd={}", fd::CONSOLE)]);
        add(&["-serial", "chardev:console"]);
    }
    argv.extend(["-kernel".into(), machine.kernel.clone().into()]);
    argv.extend(["-initrd".into(), machine.initramfs.clone().into()]);
    argv.extend(["-append".into(), cmdline(machine, accel).into()]);
    argv
}

/// The kernel's command line with the driver's own part.
fn cmdline(machine: &Machine, accel: Accel) -> String {
    let mut words = vec![machine.cmdline.as_str()];
    if accel == Accel::Tcg {
        // Checks that time and speculation pass in ways that emulation does not know.
        words.push("no_timer_check tsc=reliable mitigations=off");
    }
    if machine.console.is_some() {
        words.push("console=ttyS0");
    }
    words.join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::tests::machine;

    fn line(machine: &Machine, accel: Accel) -> String {
        let argv = argv(machine, accel);
        argv.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn says_what_the_machine_is() {
        let mut machine = machine(Path::new("/run/m"));
        let emulated = line(&machine, Accel::Tcg);
        assert!(emulated.contains("-m size=268435456B,slots=2,maxmem=536870912B "));
        assert!(emulated.contains(" -cpu max,-cx16 ") && emulated.contains("cpus=1,maxcpus=2"));
        assert!(emulated.contains("size=268435456B,share=on"));
        assert!(emulated.ends_with("quiet panic=-1 no_timer_check tsc=reliable mitigations=off"));
        assert!(!emulated.contains("-serial"));

        machine.max_memory = machine.memory;
        machine.console = Some("/run/m/console".into());
        let fast = line(&machine, Accel::Kvm);
        assert!(fast.contains("-accel kvm -cpu host ") && fast.contains("-m size=268435456B "));
        assert!(fast.contains("-serial chardev:console "));
        assert!(fast.ends_with("-append quiet panic=-1 console=ttyS0"));
    }
}
