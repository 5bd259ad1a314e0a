//! Credentials and the sources they come from.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::Secret;

use super::error::CredentialError;
use super::pattern::{Pattern, Wanted};

/// A credential for a registry or its token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A username and a password.
    Basic {
        /// The username.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth 2 refresh token, which a token server exchanges for an access token.
    Identity(Secret),
    /// A token that the registry accepts directly.
    Registry(Secret),
}

impl Credential {
    /// A description without the secret, such as `user "bob"`.
    pub fn described(&self) -> String {
        match self {
            Self::Basic { username, .. } => format!("user {username:?}"),
            Self::Identity(_) => "an identity token".to_owned(),
            Self::Registry(_) => "a registry token".to_owned(),
        }
    }

    /// The password or token.
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

/// A source of credentials.
#[async_trait]
pub trait CredentialSource: Debug + Send + Sync {
    /// The credentials for `wanted`, in any order; empty if the source has none.
    ///
    /// # Errors
    ///
    /// When the source exists but cannot be read.
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError>;
}

/// Credentials already read.
#[async_trait]
impl CredentialSource for Vec<Candidate> {
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError> {
        Ok(self.iter().filter(|it| it.pattern.is_for(wanted)).cloned().collect())
    }
}

/// Several sources. The most specific credential comes first, whichever source it is from; of
/// equally specific ones, that of the earlier source.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Arc<dyn CredentialSource>>);

impl Sources {
    /// An empty list: all requests are anonymous.
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
                // A source must not be able to send a credential to a host it is not for.
                if found.pattern.is_for(wanted) && !all.iter().any(known) {
                    all.push(found);
                }
            }
        }
        all.sort_by_key(|candidate| candidate.pattern.rank());
        Ok(all)
    }
}
