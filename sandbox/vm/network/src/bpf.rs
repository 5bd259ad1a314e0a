//! The BPF programs for the Pod's interfaces and taps. They are generated per interface: addresses
//! are constants in them, and there are no maps.

mod guard;
mod redirect;
#[cfg(test)]
mod tests;

pub(crate) use guard::{Sources, guard};
pub(crate) use redirect::{Rewrite, only_from, redirect};
