//! Registry credentials: where they are found, which repositories each is for, and the order in
//! which they are tried.

mod directory;
mod docker;
mod error;
mod helper;
mod kubernetes;
mod pattern;
mod source;

pub use directory::SecretDirectory;
pub use docker::DockerConfig;
pub use error::CredentialError;
pub use helper::Helpers;
#[cfg(any(test, fuzzing))]
pub(crate) use kubernetes::secret_text;
pub use kubernetes::{pull_secret, secret_file};
pub use pattern::{Pattern, PatternError, Wanted};
pub use source::{Candidate, Credential, CredentialSource, Sources};

#[cfg(test)]
mod tests;
