//! Registry credentials: where they are, for which place each is, and in which order they are
//! tried.

mod directory;
mod docker;
mod error;
mod helper;
mod kubernetes;
mod pattern;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::Secret;

pub use directory::SecretDirectory;
pub use docker::DockerConfig;
pub use error::CredentialError;
pub use helper::Helpers;
#[cfg(any(test, fuzzing))]
pub(crate) use kubernetes::secret_text;
pub use kubernetes::{pull_secret, secret_file};
pub use pattern::{Pattern, PatternError};

use crate::reference::Place;

/// What is shown to a registry or to its token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token that a token server changes into one that a registry takes (OAuth 2 refresh token).
    Identity(Secret),
    /// A token that the registry takes as it is.
    Registry(Secret),
}

impl Credential {
    /// What a person knows it by, never the secret: `user "bob"`.
    pub fn described(&self) -> String {
        match self {
            Self::Basic { username, .. } => format!("user {username:?}"),
            Self::Identity(_) => "an identity token".to_owned(),
            Self::Registry(_) => "a registry token".to_owned(),
        }
    }

    /// The part that must not be shown.
    pub fn secret(&self) -> &Secret {
        match self {
            Self::Basic { password, .. } => password,
            Self::Identity(token) | Self::Registry(token) => token,
        }
    }
}

/// A credential, what it is for, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The credential.
    pub credential: Credential,
    /// The registries and repositories that it is for.
    pub pattern: Pattern,
    /// The file and the entry in it, for messages.
    pub origin: String,
}

/// For what a credential is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// For one repository.
    Place(&'a Place),
    /// For any repository of that registry.
    Host(&'a str),
}

impl Wanted<'_> {
    /// The registry's host, as [`Place::host`] gives it.
    pub fn host(&self) -> &str {
        match self {
            Self::Place(place) => place.host(),
            Self::Host(host) => host,
        }
    }
}

/// A place where credentials are.
#[async_trait]
pub trait CredentialSource: Debug + Send + Sync {
    /// The credentials for that, in no order that matters.
    ///
    /// # Errors
    ///
    /// When the source is there but cannot be read; a source without a fitting credential gives
    /// none.
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError>;
}

/// Credentials that were read before.
#[async_trait]
impl CredentialSource for Vec<Candidate> {
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError> {
        Ok(self.iter().filter(|it| it.pattern.is_for(wanted)).cloned().collect())
    }
}

/// Several sources, asked in turn. The most specific credential comes first, whichever source it
/// is from; of equals the one from the earlier source.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Arc<dyn CredentialSource>>);

impl Sources {
    /// No source; everybody is nobody.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a source after the others.
    pub fn push(&mut self, source: impl CredentialSource + 'static) {
        self.0.push(Arc::new(source));
    }
}

#[async_trait]
impl CredentialSource for Sources {
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError> {
        let mut all: Vec<Candidate> = Vec::new();
        for source in &self.0 {
            for found in source.find(wanted).await? {
                let known = |it: &Candidate| {
                    it.credential == found.credential && it.pattern == found.pattern
                };
                // A source that answers for another host must not be believed.
                if found.pattern.is_for(wanted) && !all.iter().any(known) {
                    all.push(found);
                }
            }
        }
        all.sort_by_key(|candidate| candidate.pattern.rank());
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
