//! bpf(2), for which there is no safe crate.

#![allow(
    unsafe_code,
    reason = "bpf(2) takes addresses; each block names the invariant that keeps it sound"
)]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Commands of bpf(2) (`linux/bpf.h`).
const BPF_MAP_CREATE: c_long = 0;
const BPF_MAP_UPDATE_ELEM: c_long = 2;
const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;

const BPF_MAP_TYPE_SOCKMAP: u32 = 15;

/// None of the helpers that the programs call requires a GPL-compatible licence.
const LICENSE: &[u8] = b"Apache-2.0\0";

/// Size in bytes of the buffer for the verifier's log.
const VERIFIER_LOG: usize = 64 * 1024;

/// A program's type and attach type.
#[derive(Debug, Clone, Copy)]
pub struct ProgramKind {
    program: u32,
    attach: u32,
}

impl ProgramKind {
    /// `BPF_PROG_TYPE_SCHED_CLS`: processes the frames of an interface.
    pub const TRAFFIC: Self = Self { program: 3, attach: 0 };
    /// `BPF_PROG_TYPE_SK_LOOKUP`: chooses the socket for a new connection. Since Linux 5.9.
    pub const LOOKUP: Self = Self { program: 30, attach: 36 };
}

/// Attributes of `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads `code` into the kernel.
///
/// # Errors
///
/// The kernel's error, or the last line of its verifier's log, all of which is logged at debug level.
pub fn load_program(kind: ProgramKind, name: &str, code: &[u64]) -> io::Result<OwnedFd> {
    let mut attributes = Load {
        prog_type: kind.program,
        insn_cnt: u32::try_from(code.len()).map_err(io::Error::other)?,
        insns: code.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        expected_attach_type: kind.attach,
        ..Load::default()
    };
    for (to, from) in attributes.prog_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: `insns` points to `insn_cnt` instructions of 8 bytes and `license` to a text that
    // is NUL-terminated; both live until the call returns, and the kernel only reads them.
    let loaded = unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) };
    let Err(error) = loaded else { return loaded };
    let mut log = vec![0u8; VERIFIER_LOG];
    attributes.log_level = 1;
    attributes.log_size = VERIFIER_LOG as u32;
    attributes.log_buf = log.as_mut_ptr().addr() as u64;
    // SAFETY: as above, and `log_buf` is `log_size` writable bytes that live until it returns.
    let again = unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) };
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    match log.trim_end().lines().rev().find(|line| !line.starts_with("processed ")) {
        Some(reason) if again.is_err() => {
            tracing::debug!(program = name, "BPF verifier: {error}: {log}");
            Err(io::Error::other(format!("refused by the kernel's verifier: {reason}")))
        }
        _ => again.map_err(|_| error),
    }
}

/// Attributes of `BPF_MAP_CREATE`.
#[repr(C)]
struct Map {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// Creates an array of `size` sockets.
pub fn socket_map(size: u32) -> io::Result<OwnedFd> {
    let map = Map { map_type: BPF_MAP_TYPE_SOCKMAP, key_size: 4, value_size: 4, max_entries: size };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf_fd(BPF_MAP_CREATE, &map) }
}

/// Attributes of `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Stores `socket` at `key` in an array of sockets.
pub fn put_socket(map: &OwnedFd, key: u32, socket: &impl AsFd) -> io::Result<()> {
    let value = number(socket.as_fd().as_raw_fd());
    let update = Update {
        map_fd: number(map.as_raw_fd()),
        padding: 0,
        key: (&raw const key).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: `key` and `value` are 4 bytes each, as the map was created with, and live until
    // the call returns.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) }.map(drop)
}

/// Attributes of `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches `program` to `target` for as long as the returned link is open.
pub fn attach(program: &OwnedFd, target: &impl AsFd, kind: ProgramKind) -> io::Result<OwnedFd> {
    let link = Link {
        prog_fd: number(program.as_raw_fd()),
        target_fd: number(target.as_fd().as_raw_fd()),
        attach_type: kind.attach,
        flags: 0,
    };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf_fd(BPF_LINK_CREATE, &link) }
}

/// A descriptor as bpf(2) takes it.
fn number(fd: RawFd) -> u32 {
    fd as u32
}

/// Calls bpf(2) for a new descriptor; all of these are close-on-exec.
///
/// # Safety
///
/// As for [`bpf`], and `command` must be one that returns a new descriptor.
unsafe fn bpf_fd<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls bpf(2).
///
/// # Safety
///
/// `T` must be a prefix of `union bpf_attr` as `command` reads it, with zeroed padding, and the
/// addresses in it must be valid for the command's accesses.
unsafe fn bpf<T>(command: c_long, attributes: &T) -> io::Result<c_long> {
    let size = size_of::<T>();
    // SAFETY: the kernel reads `size` bytes at `attributes`, which is all of it; the caller
    // vouches for what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs a loaded [`ProgramKind::TRAFFIC`] program on `frame`. Returns its verdict and the frame as
/// modified by it.
#[cfg(feature = "testing")]
pub fn run_program(program: &OwnedFd, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    const BPF_PROG_TEST_RUN: c_long = 10;
    #[repr(C)]
    struct Run {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut out = vec![0u8; frame.len()];
    let size = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut run = Run {
        prog_fd: number(program.as_raw_fd()),
        retval: u32::MAX,
        data_size_in: size,
        data_size_out: size,
        data_in: frame.as_ptr().addr() as u64,
        data_out: out.as_mut_ptr().addr() as u64,
        repeat: 1,
        duration: 0,
    };
    // The kernel writes the verdict into the attributes.
    let attributes = &raw mut run;
    // SAFETY: `data_in` and `data_out` are `size` bytes each, the latter writable, and
    // `attributes` is the one reference to `run` while the call lasts.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, attributes, size_of::<Run>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((run.retval, out))
}
