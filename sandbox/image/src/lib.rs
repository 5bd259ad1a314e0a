//! Pulling container images: references, registry credentials, a registry client that verifies all
//! content with a digest, and unpacking of untrusted layers.
//!
//! Independent of any container runtime. Processes (credential helpers) are started through
//! [`sandbox_host::Host`]; the caller chooses all paths.
#![forbid(unsafe_code)]

mod check;
mod credential;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod layout;
mod platform;
mod pull;
mod reference;
mod registry;
mod text;
mod unpack;

pub use check::{HostCheck, Outcome, Step, check};
pub use credential::{
    Candidate, Credential, CredentialError, CredentialSource, DockerConfig, Helpers, Pattern,
    PatternError, SecretDirectory, Sources, Wanted, pull_secret, secret_file,
};
pub use layout::{LayoutError, Stage};
pub use platform::{Platform, PlatformError};
pub use pull::{NoProgress, Part, Progress, PullError, PullOptions, Pulled, pull};
pub use reference::{Place, Reference, ReferenceError};
pub use registry::{Client, HostsDirectories, RegistryError, RegistryHost, Retry};
pub use unpack::{Limits, UnpackError, Unpacked, Unpacker};
