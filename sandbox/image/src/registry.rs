//! A registry client for pulling: OCI distribution over HTTPS.
//!
//! It is anonymous until a host asks for credentials. A credential is sent only to the host it is
//! for and to the token server that this host names over verified TLS, never to a mirror and never
//! across a redirect. Content with a digest is used only after verification.

mod auth;
mod challenge;
mod client;
mod dial;
mod endpoint;
mod error;
mod host;
mod hosts;
mod manifest;
mod response;
mod retry;
mod tls;
mod token;
mod transport;

pub(crate) use challenge::Challenge;
#[cfg(any(test, fuzzing))]
pub(crate) use challenge::parse as parse_challenge;
pub use client::Client;
pub(crate) use client::Repository;
pub(crate) use dial::{Dialed, dial};
pub(crate) use endpoint::Endpoint;
pub use error::RegistryError;
pub use host::RegistryHost;
pub use hosts::HostsDirectories;
#[cfg(any(test, fuzzing))]
pub(crate) use manifest::parse as parse_manifest;
pub(crate) use manifest::{Content, Document};
pub(crate) use response::read_body;
pub use retry::Retry;

#[cfg(test)]
mod tests;
