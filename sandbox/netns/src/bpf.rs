//! An assembler for eBPF programs of a few dozen instructions, and bpf(2) to load and attach them.
//! A loader for compiled objects, with parsers for ELF and BTF, would add many times the programs'
//! size to a process that runs once per Pod.

mod assembler;
mod load;

pub use assembler::{Assembler, Helper, Label, Reg, Size, When};
#[cfg(feature = "testing")]
pub use load::run_program;
pub use load::{ProgramKind, attach, load_program, put_socket, socket_map};
