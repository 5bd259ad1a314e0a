//! eBPF programs of a few dozen instructions: an assembler for them, and bpf(2), which loads and
//! attaches them. A loader of compiled objects with its parsers of ELF and BTF would be many times
//! their size, in a process that every Pod has.

mod assembler;
mod load;

pub use assembler::{Assembler, Helper, Label, Reg, Size, When};
#[cfg(feature = "run-program")]
pub use load::run_program;
pub use load::{ProgramKind, attach, load_program, put_socket, socket_map};
