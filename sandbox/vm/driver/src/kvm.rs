//! Whether this host's KVM really runs guests. That `/dev/kvm` exists and creates VMs is not enough:
//! under some hypervisors it cannot execute instructions that every kernel uses when it boots.

#![allow(unsafe_code, reason = "a VM's memory is shared with the kernel")]

use std::ops::Range;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use nix::errno::Errno;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::time::{ClockId, clock_gettime};

/// CPU time that the probe may take. A guest needs microseconds; an unusable KVM was seen to fail
/// within some 50 ms, or to spin for ever.
const WORK: Duration = Duration::from_secs(1);
/// Wall-clock time that it may take on a busy host.
const WAIT: Duration = Duration::from_secs(15);
/// Polling interval.
const LOOK: Duration = Duration::from_millis(20);
/// Interval and number of signals that then interrupt the guest.
const KICK: Duration = Duration::from_millis(10);
const KICKS: u32 = 50;

/// The guest's memory: page tables, descriptors, code, data and stack.
#[repr(align(4096))]
struct Memory([u8; 0x10000]);

const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const CODE_AT: usize = 0x4000;
const GDT: usize = 0x5000;
const IDT: usize = 0x6000;
const STACK: u64 = 0xf000;

/// Instructions that every x86-64 kernel executes: `lock cmpxchg16b` (allocators), `xrstor64`
/// (the FPU), `int3` and `iretq` (self-tests, traps), then a byte that reports success.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0xbf, 0x00, 0x80, 0x00, 0x00,   // mov edi, 0x8000
    0x31, 0xc0, 0x31, 0xd2,         // xor eax, eax; xor edx, edx
    0x31, 0xdb, 0x31, 0xc9,         // xor ebx, ebx; xor ecx, ecx
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,   // lock cmpxchg16b [rdi]
    0xbf, 0x00, 0x90, 0x00, 0x00,   // mov edi, 0x9000
    0xb8, 0x01, 0x00, 0x00, 0x00,   // mov eax, 1
    0x48, 0x0f, 0xae, 0x27,         // xsave64 [rdi]
    0x48, 0x0f, 0xae, 0x2f,         // xrstor64 [rdi]
    0xcc,                           // int3
    0xb0, DONE,                     // mov al, DONE
    0xe6, PORT as u8,               // out PORT, al
    0xf4,                           // hlt
    0x48, 0xcf,                     // the trap's handler: iretq
];
/// The optional instructions, and their feature bits in ECX of CPUID leaf 1.
const CMPXCHG16B_AT: Range<usize> = 13..18;
const CMPXCHG16B: u32 = 1 << 13;
const XSAVE_AT: Range<usize> = 28..36;
const XSAVE: u32 = 1 << 26;
const NOP: u8 = 0x90;
/// Address of the trap handler: the last instruction of [`CODE`].
const HANDLER: u64 = (CODE_AT + CODE.len() - 2) as u64;
const PORT: u16 = 0xf4;
const DONE: u8 = 0x2a;

/// Runs a guest of a few instructions for at most a second of CPU time. It blocks.
///
/// # Errors
///
/// Why KVM is unusable, as a phrase for an error message.
pub(crate) fn probe_kvm() -> Result<(), String> {
    let made = Arc::new(AtomicBool::new(false));
    let (done, running) = channel();
    let making = Arc::clone(&made);
    let probe = move || {
        // The receiver is gone if the probe has timed out.
        let _ = done.send(run(|| making.store(true, Ordering::Release)));
    };
    let thread = std::thread::Builder::new().name("kvm-probe".into()).spawn(probe);
    let thread = thread.map_err(|error| format!("its probe cannot be started: {error}"))?;
    let begun = Instant::now();
    loop {
        match running.recv_timeout(LOOK) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Err("its probe failed".to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let worked = worked(&thread).map_err(|errno| format!("its probe is lost: {errno}"))?;
        if worked < WORK && begun.elapsed() < WAIT {
            continue;
        }
        stop(&thread)?;
        let took = format!("in {worked:?} of CPU time and {:?}", begun.elapsed());
        return Err(match made.load(Ordering::Acquire) {
            true => format!("a guest of {} bytes did not exit {took}", CODE.len()),
            false => format!("no VM was created {took}"),
        });
    }
}

/// CPU time that `thread` has used.
fn worked(thread: &JoinHandle<()>) -> Result<Duration, Errno> {
    let mut clock = 0;
    // SAFETY: the thread has not been joined, so that its id is its own; the call writes one
    // number.
    let found = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
    match found {
        0 => clock_gettime(ClockId::from_raw(clock)).map(Duration::from),
        // It has exited: the channel has the result.
        libc::ESRCH => Ok(Duration::ZERO),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Makes the thread leave the guest: a signal ends `KVM_RUN`.
fn stop(thread: &JoinHandle<()>) -> Result<(), String> {
    extern "C" fn nothing(_: libc::c_int) {}
    let signal = Signal::SIGUSR2;
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    let failed = |errno: Errno| format!("its probe cannot be stopped: {errno}");
    // SAFETY: the handler does nothing, so that it is safe at any moment.
    let before = unsafe { sigaction(signal, &action) }.map_err(failed)?;
    let mut kicks = 0;
    while !thread.is_finished() && kicks < KICKS {
        pthread_kill(thread.as_pthread_t(), signal).map_err(failed)?;
        std::thread::sleep(KICK);
        kicks += 1;
    }
    if !thread.is_finished() {
        // A signal may still arrive: leave the handler, which makes it harmless.
        return Err("a guest that does not exit cannot be interrupted either".to_owned());
    }
    // SAFETY: this restores the previous action.
    unsafe { sigaction(signal, &before) }.map_err(failed)?;
    Ok(())
}

fn run(made: impl FnOnce()) -> Result<(), String> {
    let failed = |what: &'static str| move |e: kvm_ioctls::Error| format!("{what}: {e}");
    let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let cpuid = cpuid.map_err(failed("reading the processor's features"))?;
    let features = features(&cpuid);
    let mut memory = image(features);
    let vm = kvm.create_vm().map_err(failed("creating a VM"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.0.len() as u64,
        userspace_addr: memory.0.as_mut_ptr() as u64,
    };
    // SAFETY: `memory` is page-aligned, has the region's size, and outlives the VM and its
    // processor: they are declared after it, so that they are dropped before it.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("setting its memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("creating a processor"))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("setting the processor's features"))?;
    enter_long_mode(&vcpu, features).map_err(failed("setting the processor's registers"))?;
    made();
    let started = Instant::now();
    let outcome = match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT, [DONE])) => Ok(()),
        Ok(exit) => Err(format!("a guest of {} bytes exited with {exit:?}", CODE.len())),
        Err(error) => Err(format!("running a guest: {error}")),
    };
    tracing::debug!("the KVM probe took {:?}: {outcome:?}", started.elapsed());
    outcome
}

/// The processor's features: ECX of CPUID leaf 1 (Intel SDM 2A).
fn features(cpuid: &CpuId) -> u32 {
    cpuid.as_slice().iter().find(|leaf| leaf.function == 1).map_or(0, |leaf| leaf.ecx)
}

/// The memory's content: the first 2 MiB are mapped one to one. Like a kernel, the
/// guest does without instructions that the processor lacks.
fn image(features: u32) -> Box<Memory> {
    let mut memory = Box::new(Memory([0; 0x10000]));
    let mut put = |at: usize, value: u64| {
        memory.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    put(PML4, PDPT as u64 | 0b11);
    put(PDPT, PD as u64 | 0b11);
    put(PD, 0b1000_0011);
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    // An interrupt gate to the handler (Intel SDM 3A, 6.14.1): offset, code selector, present.
    let gate = (HANDLER & 0xffff) | (8 << 16) | (0x8e00 << 32) | ((HANDLER >> 16) << 48);
    put(IDT + 3 * 16, gate);
    memory.0[CODE_AT..CODE_AT + CODE.len()].copy_from_slice(CODE);
    for (feature, at) in [(CMPXCHG16B, CMPXCHG16B_AT), (XSAVE, XSAVE_AT)] {
        if features & feature == 0 {
            memory.0[CODE_AT + at.start..CODE_AT + at.end].fill(NOP);
        }
    }
    memory
}

fn enter_long_mode(vcpu: &VcpuFd, features: u32) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT as u64, 3 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT as u64, 4 * 16 - 1);
    sregs.cr3 = PML4 as u64;
    sregs.cr0 = 0x8005_0033; // PG, AM, WP, NE, ET, MP, PE
    sregs.cr4 = 0x620; // OSXMMEXCPT, OSFXSR, PAE
    if features & XSAVE != 0 {
        sregs.cr4 |= 0x0004_0000; // OSXSAVE
    }
    sregs.efer = 0x500; // LMA, LME
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rsp, regs.rflags) = (CODE_AT as u64, STACK, 2);
    vcpu.set_regs(&regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_missing_instructions() {
        let whole = image(CMPXCHG16B | XSAVE);
        assert_eq!(whole.0[CODE_AT + CMPXCHG16B_AT.start..][..5], [0xf0, 0x48, 0x0f, 0xc7, 0x0f]);
        assert_eq!(whole.0[CODE_AT + XSAVE_AT.start..][..4], [0x48, 0x0f, 0xae, 0x27]);
        assert_eq!(whole.0[HANDLER as usize..][..2], [0x48, 0xcf]);
        let bare = image(0);
        assert_eq!(bare.0[CODE_AT + CMPXCHG16B_AT.start..][..5], [NOP; 5]);
        assert_eq!(bare.0[CODE_AT + XSAVE_AT.start..][..8], [NOP; 8]);
        assert_eq!(bare.0[CODE_AT + XSAVE_AT.end], 0xcc);
    }

    /// Nothing is known of the host, but the probe has to end, and to say why not.
    #[test]
    fn ends_in_time_and_says_why() {
        let started = Instant::now();
        match probe_kvm() {
            Ok(()) => println!("KVM runs guests: {:?}", started.elapsed()),
            Err(why) => {
                println!("KVM runs no guest ({:?}): {why}", started.elapsed());
                assert!(!why.is_empty());
            }
        }
        assert!(started.elapsed() < 2 * WAIT);
    }
}
