//! What a pull needs: image references, registry credentials, a registry client that believes
//! nothing it can verify, and the unpacking of layers that others made.
//!
//! Nothing here knows a container runtime or needs a host: processes (credential helpers) go
//! through [`sandbox_core::host::Host`], files are where the caller says.
#![forbid(unsafe_code)]

pub mod check;
pub mod credential;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod layout;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
mod text;
pub mod unpack;

pub use check::check;
pub use credential::{Candidate, Credential, CredentialSource, Sources};
pub use layout::Stage;
pub use platform::Platform;
pub use pull::{PullOptions, Pulled, pull};
pub use reference::{Place, Reference};
pub use registry::{Client, HostsDirectories, Retry};
