//! An assembler for the subset of the eBPF instruction set (RFC 9669) that the programs use.

/// A register. R0 has a call's result, R1 to R5 its arguments, R6 to R9 are preserved across calls,
/// and R10 points to the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "numbers")]
pub enum Reg {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R10 = 10,
}

/// Width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "bits")]
pub enum Size {
    U8 = 0x10,
    U16 = 0x08,
    U32 = 0x00,
}

/// A helper function of the kernel, by its number in `linux/bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Helper {
    MapLookup = 1,
    StoreBytes = 9,
    Redirect = 23,
    LoadBytes = 26,
    SkRelease = 86,
    SkAssign = 124,
}

/// A comparison of a register's lower 32 bits with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "self-explanatory")]
pub enum When {
    Equal = 0x10,
    NotEqual = 0x50,
}

/// A place in the program to jump to. Jumps lead forward only.
pub type Label = &'static str;

const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const MOV64_REG: u8 = 0xbf;
const MOV64: u8 = 0xb7;
const ADD64: u8 = 0x07;
const ADD64_REG: u8 = 0x0f;
const AND32: u8 = 0x54;
const LSH64: u8 = 0x67;
const LD_IMM64: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const JMP32: u8 = 0x06;
const JEQ64: u8 = 0x15;
const JA: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// A program under construction.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<u64>,
    /// Jumps to labels that are not placed yet.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, opcode: u8, dst: Reg, src: u8, offset: i16, value: i32) -> &mut Self {
        // `struct bpf_insn` has the destination in a bit field's first half, which is the upper
        // one on big-endian CPUs.
        let registers = dst as u8 | src << 4;
        let registers =
            if cfg!(target_endian = "big") { registers.rotate_left(4) } else { registers };
        let [o0, o1] = offset.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        self.code.push(u64::from_ne_bytes([opcode, registers, o0, o1, v0, v1, v2, v3]));
        self
    }

    /// `dst = *(size *)(src + offset)`
    pub fn load(&mut self, size: Size, dst: Reg, src: Reg, offset: i16) -> &mut Self {
        self.push(LDX_MEM | size as u8, dst, src as u8, offset, 0)
    }

    /// `*(size *)(dst + offset) = value`
    pub fn store_value(&mut self, size: Size, dst: Reg, offset: i16, value: i32) -> &mut Self {
        self.push(ST_MEM | size as u8, dst, 0, offset, value)
    }

    /// `dst = src`
    pub fn copy(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(MOV64_REG, dst, src as u8, 0, 0)
    }

    /// `dst = value`
    pub fn set(&mut self, dst: Reg, value: i32) -> &mut Self {
        self.push(MOV64, dst, 0, 0, value)
    }

    /// `dst += value`
    pub fn add(&mut self, dst: Reg, value: i32) -> &mut Self {
        self.push(ADD64, dst, 0, 0, value)
    }

    /// `dst += src`
    pub fn add_reg(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(ADD64_REG, dst, src as u8, 0, 0)
    }

    /// `dst <<= bits`
    pub fn shift_left(&mut self, dst: Reg, bits: i32) -> &mut Self {
        self.push(LSH64, dst, 0, 0, bits)
    }

    /// `dst = (u32)dst & value`
    pub fn and(&mut self, dst: Reg, value: u32) -> &mut Self {
        self.push(AND32, dst, 0, 0, value as i32)
    }

    /// `dst = ` the map open as `fd`
    pub fn map(&mut self, dst: Reg, fd: i32) -> &mut Self {
        self.push(LD_IMM64, dst, PSEUDO_MAP_FD, 0, fd);
        self.code.push(0);
        self
    }

    /// Calls `helper`, whose result is in R0.
    pub fn call(&mut self, helper: Helper) -> &mut Self {
        self.push(CALL, Reg::R0, 0, 0, helper as i32)
    }

    /// Exits with the verdict in R0.
    pub fn exit(&mut self) -> &mut Self {
        self.push(EXIT, Reg::R0, 0, 0, 0)
    }

    /// Jumps to `to` if the lower half of `reg` compares to `value` as `when` has it.
    pub fn jump_if(&mut self, reg: Reg, when: When, value: u32, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(JMP32 | when as u8, reg, 0, 0, value as i32)
    }

    /// Jumps to `to` if the pointer in `reg` is null.
    pub fn jump_if_null(&mut self, reg: Reg, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(JEQ64, reg, 0, 0, 0)
    }

    /// Jumps to `to`.
    pub fn jump(&mut self, to: Label) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(JA, Reg::R0, 0, 0, 0)
    }

    /// Jumps to `to` unless the bytes at `base + at` are `bytes`. `at` and the length of `bytes` are
    /// even, since loads must be aligned. Overwrites R0.
    pub fn jump_unless_bytes(&mut self, base: Reg, at: i16, bytes: &[u8], to: Label) -> &mut Self {
        let mut offset = at;
        let mut rest = bytes;
        while let [a, b, after @ ..] = rest {
            let (size, value, step) = match after {
                [c, d, after @ ..] if offset % 4 == 0 => {
                    rest = after;
                    (Size::U32, u32::from_ne_bytes([*a, *b, *c, *d]), 4)
                }
                _ => {
                    rest = after;
                    (Size::U16, u32::from(u16::from_ne_bytes([*a, *b])), 2)
                }
            };
            self.load(size, Reg::R0, base, offset).jump_if(Reg::R0, When::NotEqual, value, to);
            offset += step;
        }
        self
    }

    /// Places `label` here: the target of all jumps to it so far.
    ///
    /// # Panics
    ///
    /// If a jump exceeds 32767 instructions, far more than the programs have.
    pub fn label(&mut self, label: Label) -> &mut Self {
        let here = self.code.len();
        let code = &mut self.code;
        self.jumps.retain(|(from, to)| {
            if *to != label {
                return true;
            }
            let distance = i16::try_from(here - from - 1).expect("a short program");
            let mut bytes = code[*from].to_ne_bytes();
            bytes[2..4].copy_from_slice(&distance.to_ne_bytes());
            code[*from] = u64::from_ne_bytes(bytes);
            false
        });
        self
    }

    /// The finished program.
    ///
    /// # Panics
    ///
    /// If a jump's label was never placed.
    pub fn finish(self) -> Vec<u64> {
        assert!(self.jumps.is_empty(), "labels that are not placed: {:?}", self.jumps);
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(code: &[u64]) -> Vec<[u8; 8]> {
        code.iter().map(|instruction| instruction.to_ne_bytes()).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_in_rfc_9669() {
        let mut program = Assembler::default();
        program
            .copy(Reg::R6, Reg::R1)
            .load(Size::U16, Reg::R0, Reg::R10, -4)
            .store_value(Size::U8, Reg::R10, -1, 5)
            .and(Reg::R0, 0xffff_ff00)
            .map(Reg::R1, 3)
            .call(Helper::Redirect)
            .exit();
        let expected = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0x69, 0xa0, 0xfc, 0xff, 0, 0, 0, 0],
            [0x72, 0x0a, 0xff, 0xff, 5, 0, 0, 0],
            [0x54, 0x00, 0, 0, 0, 0xff, 0xff, 0xff],
            [0x18, 0x11, 0, 0, 3, 0, 0, 0],
            [0; 8],
            [0x85, 0, 0, 0, 23, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&program.finish()), expected);
    }

    #[test]
    fn a_jump_goes_to_the_next_place_of_its_label() {
        let mut program = Assembler::default();
        program.jump_if(Reg::R0, When::Equal, 1, "a").jump("b").label("a").jump("a");
        program.exit().label("a").label("b").exit();
        let distances: Vec<i16> =
            bytes(&program.finish()).iter().map(|b| i16::from_ne_bytes([b[2], b[3]])).collect();
        assert_eq!(distances, [1, 2, 1, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "labels that are not placed")]
    fn a_label_must_be_placed() {
        let mut program = Assembler::default();
        program.jump("nowhere");
        program.finish();
    }
}
