//! Documents to objects: each reader takes the fields it understands and reports the others.

mod container;
mod meta;
mod object;
mod pod;
mod relative;
mod resources;
mod security;
mod volume;

pub(crate) use meta::described;
pub(crate) use object::{config_map, runtime_class, secret};
pub(crate) use pod::pod;
