//! The programs that the Pod's interfaces and its loopback get, as pure code: instructions in,
//! nothing done. They are generated per interface, so that addresses are constants in them and
//! no map has to be kept. `super::sys` loads them.
//!
//! They are a few dozen instructions, which is why a small assembler makes them: a loader of
//! compiled objects with its parsers of ELF and BTF would be many times their size, in a
//! process that every Pod has.

mod assembler;
mod guard;
mod redirect;
mod steer;
#[cfg(test)]
mod tests;

pub(super) use guard::{Sources, guard};
pub(super) use redirect::{Rewrite, only_from, redirect};
pub(super) use steer::{SLOT_V4, SLOT_V6, steer};
