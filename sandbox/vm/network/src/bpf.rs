//! The programs that the Pod's interfaces get, as pure code: instructions in,
//! nothing done. They are generated per interface, so that addresses are constants in them and
//! no map has to be kept.

mod guard;
mod redirect;
#[cfg(test)]
mod tests;

pub(crate) use guard::{Sources, guard};
pub(crate) use redirect::{Rewrite, only_from, redirect};
