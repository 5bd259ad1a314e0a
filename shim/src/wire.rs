//! containerd's wire: protobuf messages and ttrpc are known in this module alone. Everything above
//! and below it speaks this project's own types.

mod bootstrap;
mod convert;
mod info;
mod metrics;
mod options;
mod publisher;
mod server;
mod service;

pub(crate) use bootstrap::{INPUT_MAX, Input};
pub(crate) use convert::delete_response;
pub(crate) use info::run as info;
pub(crate) use publisher::Publisher;
pub(crate) use server::server;
pub(crate) use service::Service;
