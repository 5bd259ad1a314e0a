//! Authentication state for one registry host; anonymous until challenged.

use reqwest::Url;
use reqwest::header::HeaderValue;
use sandbox_core::Secret;
use tokio::sync::Mutex;

use super::challenge::Challenge;
use super::error::RegistryError;
use super::response::redact;
use super::token::{self, TokenError, TokenRequest};
use super::transport::Transport;
use crate::credential::{Candidate, Credential};

/// The credentials for one repository on one host, and which of them is in use.
#[derive(Debug)]
pub(super) struct Auth {
    repository: String,
    candidates: Vec<Candidate>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the changes of `current`, so that of several requests rejected concurrently only the
    /// first changes it.
    generation: u64,
    current: Option<Current>,
    /// Index of the next candidate to try.
    next: usize,
    /// Whether an anonymous token was requested.
    anonymous: bool,
    /// The failed attempts, for the error message.
    tries: Vec<String>,
    challenge: Option<Challenge>,
}

/// The authorization in use.
#[derive(Debug)]
struct Current {
    header: HeaderValue,
    /// Index of the candidate; `None` for an anonymous token.
    candidate: Option<usize>,
    /// Whether it is a short-lived token from a token server.
    fetched: bool,
    /// Whether the registry has accepted it before.
    accepted: bool,
}

/// The authorization of one request.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    pub(super) header: Option<HeaderValue>,
    generation: u64,
}

impl Auth {
    pub(super) fn new(repository: &str, candidates: Vec<Candidate>) -> Self {
        Self { repository: repository.to_owned(), candidates, state: Mutex::default() }
    }

    /// The authorization for the next request.
    pub(super) async fn authorization(&self) -> Authorization {
        let state = self.state.lock().await;
        let header = state.current.as_ref().map(|current| current.header.clone());
        Authorization { header, generation: state.generation }
    }

    /// Records that the registry accepted `used`.
    pub(super) async fn accepted(&self, used: &Authorization) {
        let mut state = self.state.lock().await;
        if state.generation == used.generation {
            if let Some(current) = &mut state.current {
                current.accepted = true;
            }
        }
    }

    /// The candidate in use.
    pub(super) async fn candidate(&self) -> Option<Candidate> {
        let state = self.state.lock().await;
        let at = state.current.as_ref().and_then(|current| current.candidate)?;
        self.candidates.get(at).cloned()
    }

    /// The registry's last challenge.
    pub(super) async fn challenge(&self) -> Option<Challenge> {
        self.state.lock().await.challenge.clone()
    }

    /// A server's text in one line, without the secrets of any candidate.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for candidate in &self.candidates {
            text = redact(&text, Some(&candidate.credential));
        }
        redact(&text, None)
    }

    /// The registry rejected `used` with `message`: switches to the next candidate or a new token.
    ///
    /// # Errors
    ///
    /// When there is none left, or a token server fails.
    pub(super) async fn rejected(
        &self,
        transport: &Transport,
        used: &Authorization,
        challenge: Option<Challenge>,
        message: &str,
    ) -> Result<(), RegistryError> {
        // Held across the token request on purpose: the requests that wait for the lock need its
        // outcome, and it has a deadline.
        let mut state = self.state.lock().await;
        if state.generation != used.generation {
            return Ok(());
        }
        state.generation += 1;
        let challenge = challenge.or_else(|| state.challenge.clone());
        state.challenge.clone_from(&challenge);
        let old = state.current.take();
        let Some(challenge) = challenge else {
            let message = if message.is_empty() { "no challenge" } else { message };
            state.tries.push(message.to_owned());
            return Err(self.denied(transport, &state));
        };
        if let Some(old) = old {
            if old.fetched && old.accepted {
                // The token has expired: the same credential gets another one.
                let renewed = self.activate(transport, &challenge, old.candidate).await;
                return self.settle(transport, &mut state, renewed, old.candidate);
            }
            self.note(&mut state, old.candidate, &self.reason(&challenge, &old, message));
        }
        self.next(transport, &mut state, &challenge).await
    }

    /// Why `rejected` was rejected. The challenge's `error` parameter often says more than the
    /// message, for example that a token has expired.
    fn reason(&self, challenge: &Challenge, rejected: &Current, message: &str) -> String {
        let Challenge::Bearer { error: Some(error), .. } = challenge else {
            return message.to_owned();
        };
        let token = if rejected.fetched { "the token of its token server" } else { "the token" };
        format!("{token} is refused ({}): {message}", self.redact(error))
    }

    async fn next(
        &self,
        transport: &Transport,
        state: &mut State,
        challenge: &Challenge,
    ) -> Result<(), RegistryError> {
        while state.next < self.candidates.len() {
            let at = Some(state.next);
            state.next += 1;
            match self.activate(transport, challenge, at).await {
                Ok(current) => {
                    state.current = Some(current);
                    return Ok(());
                }
                Err(TokenError::Refused(why)) => self.note(state, at, &why),
                Err(TokenError::Failed(error)) => return Err(error),
            }
        }
        let bearer = matches!(challenge, Challenge::Bearer { .. });
        if self.candidates.is_empty() && bearer && !state.anonymous {
            state.anonymous = true;
            let anonymous = self.activate(transport, challenge, None).await;
            return self.settle(transport, state, anonymous, None);
        }
        Err(self.denied(transport, state))
    }

    fn settle(
        &self,
        transport: &Transport,
        state: &mut State,
        result: Result<Current, TokenError>,
        candidate: Option<usize>,
    ) -> Result<(), RegistryError> {
        match result {
            Ok(current) => {
                state.current = Some(current);
                Ok(())
            }
            Err(TokenError::Failed(error)) => Err(error),
            Err(TokenError::Refused(why)) => {
                self.note(state, candidate, &why);
                Err(self.denied(transport, state))
            }
        }
    }

    /// The authorization for the candidate at index `at`, or an anonymous one.
    async fn activate(
        &self,
        transport: &Transport,
        challenge: &Challenge,
        at: Option<usize>,
    ) -> Result<Current, TokenError> {
        let credential = at.and_then(|at| self.candidates.get(at)).map(|it| &it.credential);
        let refused = |why: &str| TokenError::Refused(why.to_owned());
        let (header, fetched) = match (challenge, credential) {
            (_, Some(Credential::Registry(token))) => (token::header("Bearer ", token), false),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                (token::basic(username, password), false)
            }
            (Challenge::Basic, Some(Credential::Identity(_))) => {
                let why = "the registry requires a username and password, not an identity token";
                return Err(refused(why));
            }
            (Challenge::Basic, None) => {
                return Err(refused("the registry requires a username and password"));
            }
            (Challenge::Bearer { .. }, credential) => {
                let request = self.request(transport, challenge)?;
                let token = token::fetch(transport, &request, credential).await;
                let token: Secret = token.map_err(|error| self.redacted(error))?;
                (token::header("Bearer ", &token), true)
            }
        };
        let header = header.ok_or_else(|| refused("it cannot be sent in an HTTP header"))?;
        Ok(Current { header, candidate: at, fetched, accepted: false })
    }

    /// Redacts all candidates: a server may echo one that was sent earlier.
    fn redacted(&self, error: TokenError) -> TokenError {
        match error {
            TokenError::Refused(why) => TokenError::Refused(self.redact(&why)),
            TokenError::Failed(RegistryError::TokenServer { host, realm, why }) => {
                let why = self.redact(&why);
                TokenError::Failed(RegistryError::TokenServer { host, realm, why })
            }
            TokenError::Failed(other) => TokenError::Failed(other),
        }
    }

    fn request(
        &self,
        transport: &Transport,
        challenge: &Challenge,
    ) -> Result<TokenRequest, TokenError> {
        let Challenge::Bearer { realm, service, scope, .. } = challenge else {
            unreachable!("only a Bearer challenge has a token server")
        };
        let realm = Url::parse(realm).map_err(|error| {
            let host = transport.host();
            let realm = crate::text::line(realm);
            TokenError::Failed(RegistryError::TokenServer { host, realm, why: error.to_string() })
        })?;
        let scope = scope.clone().filter(|scope| !scope.is_empty());
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        Ok(TokenRequest { realm, service: service.clone(), scope })
    }

    fn note(&self, state: &mut State, at: Option<usize>, message: &str) {
        let credential = match at.and_then(|at| self.candidates.get(at)) {
            Some(candidate) => {
                format!("{} of {}", candidate.credential.described(), candidate.origin)
            }
            None => "without a credential".to_owned(),
        };
        let message = if message.is_empty() { "refused" } else { message };
        tracing::debug!("{}: {credential}: {message}", self.repository);
        state.tries.push(format!("{credential}: {message}"));
    }

    fn denied(&self, transport: &Transport, state: &State) -> RegistryError {
        let host = transport.host();
        let repository = self.repository.clone();
        if self.candidates.is_empty() && state.challenge.is_some() {
            RegistryError::NoCredential { host, repository }
        } else {
            RegistryError::Refused { host, repository, tries: state.tries.clone() }
        }
    }
}
