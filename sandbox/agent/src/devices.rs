//! Restricts the devices that a container may use. cgroup v2 has no file for that but an eBPF
//! program, which the kernel runs at each open and mknod.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use nix::errno::Errno;

use crate::error::{Doing, Result, invalid};

/// Device types and accesses in the program's context (`linux/bpf.h`, `BPF_DEVCG_*`).
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// A rule; the last one that matches decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    /// `None` for both.
    pub(crate) kind: Option<i32>,
    pub(crate) major: Option<i32>,
    pub(crate) minor: Option<i32>,
    pub(crate) access: i32,
}

/// What every container may use, whatever its specification: other engines add the same.
const DEFAULTS: [Rule; 10] = [
    allowed(CHAR, None, None, MKNOD),
    allowed(BLOCK, None, None, MKNOD),
    // null, zero, full, random, urandom, tty, ptmx, pts/*
    allowed(CHAR, Some(1), Some(3), ALL),
    allowed(CHAR, Some(1), Some(5), ALL),
    allowed(CHAR, Some(1), Some(7), ALL),
    allowed(CHAR, Some(1), Some(8), ALL),
    allowed(CHAR, Some(1), Some(9), ALL),
    allowed(CHAR, Some(5), Some(0), ALL),
    allowed(CHAR, Some(5), Some(2), ALL),
    allowed(CHAR, Some(136), None, ALL),
];

const fn allowed(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

impl Rule {
    /// Allows the use of a container's own block device.
    pub(crate) fn disk(major: u64, minor: u64, read_only: bool) -> Self {
        let number = |number: u64| i32::try_from(number).ok();
        let access = if read_only { READ | MKNOD } else { ALL };
        allowed(BLOCK, number(major), number(minor), access)
    }
}

/// The rules for `given` (`linux.resources.devices`) and `disks`. Empty if `given` is: then
/// everything is allowed.
pub(crate) fn rules(given: &[LinuxDeviceCgroup], disks: &[Rule]) -> Result<Vec<Rule>> {
    if given.is_empty() {
        return Ok(Vec::new());
    }
    let given = given.iter().map(rule).collect::<Result<Vec<_>>>()?;
    Ok([&given, disks, &DEFAULTS[..]].concat())
}

fn rule(given: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match given.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
        Some(LinuxDeviceType::P) => {
            return Err(invalid("a device rule has type p: a FIFO is not a device"));
        }
    };
    let mut access = 0;
    for letter in given.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(invalid(format!("device access {other:?} is not one of r, w, m"))),
        };
    }
    // A negative number matches all.
    let number = |number: Option<i64>| {
        number.and_then(|number| i32::try_from(number).ok()).filter(|number| *number >= 0)
    };
    let major = number(given.major());
    let minor = number(given.minor());
    Ok(Rule { allow: given.allow(), kind, major, minor, access })
}

/// An instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Op {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE32: u8 = 0xb4;
const MOVE32_REGISTER: u8 = 0xbc;
const AND32: u8 = 0x54;
const SHIFT_RIGHT32: u8 = 0x74;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_UNEQUAL_REGISTER: u8 = 0x5d;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Registers: the result, the context (later scratch), and the values read from it.
const R_ANSWER: u8 = 0;
const R_SCRATCH: u8 = 1;
const R_ACCESS: u8 = 2;
const R_KIND: u8 = 3;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Op {
    Op { code, registers: destination | (source << 4), offset, immediate }
}

/// The program for `rules`.
fn program(rules: &[Rule]) -> Vec<Op> {
    let mut ops = vec![
        op(LOAD_WORD, R_ACCESS, R_SCRATCH, 0, 0),
        op(LOAD_WORD, R_MAJOR, R_SCRATCH, 4, 0),
        op(LOAD_WORD, R_MINOR, R_SCRATCH, 8, 0),
        op(MOVE32_REGISTER, R_KIND, R_ACCESS, 0, 0),
        op(AND32, R_KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT32, R_ACCESS, 0, 0, 16),
    ];
    // The last rule that matches decides, so it is tested first.
    for rule in rules.iter().rev() {
        let tests = tests(rule);
        let unconditional = tests.is_empty();
        let length = tests.len();
        for (at, mut test) in tests.into_iter().enumerate() {
            if matches!(test.code, JUMP_EQUAL | JUMP_UNEQUAL | JUMP_UNEQUAL_REGISTER) {
                // Past the rest of the tests and the result; a rule has few tests.
                test.offset = (length - at - 1 + 2) as i16;
            }
            ops.push(test);
        }
        ops.push(op(MOVE32, R_ANSWER, 0, 0, i32::from(rule.allow)));
        ops.push(op(EXIT, 0, 0, 0, 0));
        if unconditional {
            // The kernel refuses programs with unreachable instructions.
            return ops;
        }
    }
    ops.push(op(MOVE32, R_ANSWER, 0, 0, 1));
    ops.push(op(EXIT, 0, 0, 0, 0));
    ops
}

/// The tests of `rule`, which jump if it does not match. The caller fills in the offsets.
fn tests(rule: &Rule) -> Vec<Op> {
    let mut tests = Vec::new();
    let equals = [(R_KIND, rule.kind), (R_MAJOR, rule.major), (R_MINOR, rule.minor)];
    for (register, wanted) in equals {
        tests.extend(wanted.map(|wanted| op(JUMP_UNEQUAL, register, 0, 0, wanted)));
    }
    if rule.access != ALL {
        tests.push(op(MOVE32_REGISTER, R_SCRATCH, R_ACCESS, 0, 0));
        tests.push(op(AND32, R_SCRATCH, 0, 0, rule.access));
        // Allowed if all of the access is allowed, denied if any of it is denied.
        tests.push(match rule.allow {
            true => op(JUMP_UNEQUAL_REGISTER, R_SCRATCH, R_ACCESS, 0, 0),
            false => op(JUMP_EQUAL, R_SCRATCH, 0, 0, 0),
        });
    }
    tests
}

/// Applies `rules` to the cgroup at `group`.
pub(crate) fn restrict(group: &Path, rules: &[Rule]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let doing = || format!("restricting the devices of {}", group.display());
    let directory = File::open(group).doing(doing)?;
    let program = load(&program(rules)).doing(doing)?;
    attach(&directory, &program).doing(doing)
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD needs.
#[repr(C)]
struct LoadRequest {
    kind: u32,
    count: u32,
    ops: u64,
    license: u64,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH reads.
#[repr(C)]
struct AttachRequest {
    group: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn load(ops: &[Op]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let request = LoadRequest {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(ops.len()).map_err(io::Error::other)?,
        ops: ops.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    let size = size_of::<LoadRequest>();
    // SAFETY: the request has the size given; its pointers are to `count` instructions and to a
    // C string, which both outlive the call.
    let loaded = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const request, size) };
    let program = i32::try_from(Errno::result(loaded)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor (close-on-exec, as all of bpf's are).
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

fn attach(group: &File, program: &OwnedFd) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let request = AttachRequest {
        group: group.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    let size = size_of::<AttachRequest>();
    // SAFETY: the request has the size given and holds two open descriptors.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const request, size) };
    Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets a program.
    fn run(ops: &[Op], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [kind | (access << 16), major, minor];
        let mut registers = [0; 6];
        let mut at = 0;
        loop {
            let Op { code, registers: pair, offset, immediate } = ops[at];
            let to = usize::from(pair & 15);
            let from = usize::from(pair >> 4);
            at += 1;
            let jump = match code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(offset).unwrap() / 4];
                    false
                }
                MOVE32 => {
                    registers[to] = immediate;
                    false
                }
                MOVE32_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                AND32 => {
                    registers[to] &= immediate;
                    false
                }
                SHIFT_RIGHT32 => {
                    registers[to] >>= immediate;
                    false
                }
                JUMP_UNEQUAL => registers[to] != immediate,
                JUMP_UNEQUAL_REGISTER => registers[to] != registers[from],
                JUMP_EQUAL => registers[to] == immediate,
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    fn given(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn all_but_the_defaults_and_its_own_disk_is_denied() {
        let given = given(r#"[{"allow": false, "access": "rwm"}]"#);
        let ops = program(&rules(&given, &[Rule::disk(254, 16, true)]).unwrap());
        assert!(run(&ops, CHAR, 1, 3, READ | WRITE));
        assert!(run(&ops, CHAR, 136, 7, READ | WRITE));
        assert!(run(&ops, CHAR, 10, 200, MKNOD));
        assert!(!run(&ops, CHAR, 10, 200, READ));
        assert!(!run(&ops, CHAR, 1, 1, READ));
        assert!(run(&ops, BLOCK, 254, 16, READ));
        assert!(!run(&ops, BLOCK, 254, 16, READ | WRITE));
        assert!(!run(&ops, BLOCK, 254, 0, READ));
        assert!(run(&ops, BLOCK, 254, 0, MKNOD));
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let given = given(
            r#"[{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
                {"allow": false, "type": "c", "major": 10, "access": "w"}]"#,
        );
        let ops = program(&given.iter().map(rule).collect::<Result<Vec<_>>>().unwrap());
        assert!(run(&ops, CHAR, 10, 229, READ));
        assert!(!run(&ops, CHAR, 10, 229, READ | WRITE));
        assert!(!run(&ops, BLOCK, 10, 229, READ));
    }

    #[test]
    fn without_rules_nothing_is_restricted() {
        assert_eq!(rules(&[], &[]).unwrap(), []);
        let all = given(r#"[{"allow": true, "type": "a", "access": "rwm"}]"#);
        let ops = program(&rules(&all, &[]).unwrap());
        assert!(run(&ops, CHAR, 1, 1, ALL));
        // No unreachable instruction follows an unconditional result.
        assert_eq!(ops.iter().rev().take(2).map(|op| op.code).collect::<Vec<_>>(), [EXIT, MOVE32]);
    }
}
