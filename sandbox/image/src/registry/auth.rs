//! Who this client is to one registry host: nobody, until the host asks.

use reqwest::Url;
use reqwest::header::HeaderValue;
use sandbox_core::Secret;
use tokio::sync::Mutex;

use super::RegistryError;
use super::challenge::Challenge;
use super::token::{self, NoToken, TokenRequest};
use super::transport::Transport;
use crate::credential::{Candidate, Credential};

/// The credentials for one repository on one host, and how far they came.
#[derive(Debug)]
pub(super) struct Auth {
    repository: String,
    candidates: Vec<Candidate>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the changes of `shown`, so that of several requests that were refused together only
    /// the first changes it.
    generation: u64,
    shown: Option<Shown>,
    /// The next candidate.
    next: usize,
    anonymous: bool,
    tries: Vec<String>,
    challenge: Option<Challenge>,
}

#[derive(Debug)]
struct Shown {
    header: HeaderValue,
    /// The candidate; nobody has none.
    candidate: Option<usize>,
    /// It is a token that a server gave for a while.
    fetched: bool,
    /// It was taken once.
    taken: bool,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    pub(super) header: Option<HeaderValue>,
    generation: u64,
}

impl Auth {
    pub(super) fn new(repository: &str, candidates: Vec<Candidate>) -> Self {
        Self { repository: repository.to_owned(), candidates, state: Mutex::default() }
    }

    /// What to show now.
    pub(super) async fn pass(&self) -> Pass {
        let state = self.state.lock().await;
        let header = state.shown.as_ref().map(|shown| shown.header.clone());
        Pass { header, generation: state.generation }
    }

    /// The registry took it.
    pub(super) async fn taken(&self, pass: &Pass) {
        let mut state = self.state.lock().await;
        if state.generation == pass.generation {
            if let Some(shown) = &mut state.shown {
                shown.taken = true;
            }
        }
    }

    /// The candidate that is shown now.
    pub(super) async fn candidate(&self) -> Option<Candidate> {
        let state = self.state.lock().await;
        let at = state.shown.as_ref().and_then(|shown| shown.candidate)?;
        self.candidates.get(at).cloned()
    }

    /// What the registry asked for.
    pub(super) async fn challenge(&self) -> Option<Challenge> {
        self.state.lock().await.challenge.clone()
    }

    /// A server's text without any of the secrets here.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for candidate in &self.candidates {
            text = super::redact(&text, Some(&candidate.credential));
        }
        super::redact(&text, None)
    }

    /// The registry refused what `pass` carried: finds something else to show.
    ///
    /// # Errors
    ///
    /// When there is nothing else, or a token server fails.
    pub(super) async fn refused(
        &self,
        transport: &Transport,
        pass: &Pass,
        challenge: Option<Challenge>,
        said: &str,
    ) -> Result<(), RegistryError> {
        // Held over the token request on purpose: the others that wait need its outcome, and the
        // request has a deadline.
        let mut state = self.state.lock().await;
        if state.generation != pass.generation {
            return Ok(());
        }
        state.generation += 1;
        let challenge = challenge.or_else(|| state.challenge.clone());
        state.challenge.clone_from(&challenge);
        let old = state.shown.take();
        let Some(challenge) = challenge else {
            state.tries.push(if said.is_empty() {
                "it does not say how".to_owned()
            } else {
                said.to_owned()
            });
            return Err(self.denied(transport, &state));
        };
        if let Some(old) = old {
            if old.fetched && old.taken {
                // It was good and is no more: the same credential gets another.
                let again = self.show(transport, &challenge, old.candidate).await;
                return self.settle(transport, &mut state, again, old.candidate);
            }
            self.note(&mut state, old.candidate, &self.verdict(&challenge, &old, said));
        }
        self.next(transport, &mut state, &challenge).await
    }

    /// What is wrong with what was shown: a header tells what the text often does not, such as a
    /// token that has expired.
    fn verdict(&self, challenge: &Challenge, shown: &Shown, said: &str) -> String {
        let Challenge::Bearer { error: Some(error), .. } = challenge else {
            return said.to_owned();
        };
        let token = if shown.fetched { "the token of its token server" } else { "the token" };
        format!("{token} is refused ({}): {said}", self.redact(error))
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
            match self.show(transport, challenge, at).await {
                Ok(shown) => {
                    state.shown = Some(shown);
                    return Ok(());
                }
                Err(NoToken::Refused(why)) => self.note(state, at, &why),
                Err(NoToken::Failed(error)) => return Err(error),
            }
        }
        let bearer = matches!(challenge, Challenge::Bearer { .. });
        if self.candidates.is_empty() && bearer && !state.anonymous {
            state.anonymous = true;
            let nobody = self.show(transport, challenge, None).await;
            return self.settle(transport, state, nobody, None);
        }
        Err(self.denied(transport, state))
    }

    fn settle(
        &self,
        transport: &Transport,
        state: &mut State,
        result: Result<Shown, NoToken>,
        candidate: Option<usize>,
    ) -> Result<(), RegistryError> {
        match result {
            Ok(shown) => {
                state.shown = Some(shown);
                Ok(())
            }
            Err(NoToken::Failed(error)) => Err(error),
            Err(NoToken::Refused(why)) => {
                self.note(state, candidate, &why);
                Err(self.denied(transport, state))
            }
        }
    }

    /// Makes what is shown of one candidate, or of nobody.
    async fn show(
        &self,
        transport: &Transport,
        challenge: &Challenge,
        at: Option<usize>,
    ) -> Result<Shown, NoToken> {
        let credential = at.and_then(|at| self.candidates.get(at)).map(|it| &it.credential);
        let unfit = |why: &str| NoToken::Refused(why.to_owned());
        let (secret_header, fetched) = match (challenge, credential) {
            (_, Some(Credential::Registry(token))) => (token::header("Bearer ", token), false),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                (token::basic(username, password), false)
            }
            (Challenge::Basic, Some(Credential::Identity(_))) => {
                return Err(unfit("the registry takes a user and password, not an identity token"));
            }
            (Challenge::Basic, None) => return Err(unfit("it wants a user and a password")),
            (Challenge::Bearer { .. }, credential) => {
                let request = self.request(transport, challenge)?;
                let token = token::fetch(transport, &request, credential).await;
                let token: Secret = token.map_err(|fault| self.redacted(fault))?;
                (token::header("Bearer ", &token), true)
            }
        };
        let header = secret_header.ok_or_else(|| unfit("it cannot be sent in an HTTP header"))?;
        Ok(Shown { header, candidate: at, fetched, taken: false })
    }

    /// A server may know more secrets than the one that it was shown last.
    fn redacted(&self, fault: NoToken) -> NoToken {
        match fault {
            NoToken::Refused(why) => NoToken::Refused(self.redact(&why)),
            NoToken::Failed(RegistryError::TokenServer { host, realm, why }) => {
                NoToken::Failed(RegistryError::TokenServer { host, realm, why: self.redact(&why) })
            }
            NoToken::Failed(other) => NoToken::Failed(other),
        }
    }

    fn request(
        &self,
        transport: &Transport,
        challenge: &Challenge,
    ) -> Result<TokenRequest, NoToken> {
        let Challenge::Bearer { realm, service, scope, .. } = challenge else {
            unreachable!("only a Bearer challenge has a token server")
        };
        let realm = Url::parse(realm).map_err(|error| {
            let (host, realm) = (transport.host(), crate::text::line(realm));
            NoToken::Failed(RegistryError::TokenServer { host, realm, why: error.to_string() })
        })?;
        let scope = scope.clone().filter(|scope| !scope.is_empty());
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        Ok(TokenRequest { realm, service: service.clone(), scope })
    }

    fn note(&self, state: &mut State, at: Option<usize>, said: &str) {
        let who = match at.and_then(|at| self.candidates.get(at)) {
            Some(candidate) => {
                format!("{} of {}", candidate.credential.described(), candidate.origin)
            }
            None => "without a credential".to_owned(),
        };
        let said = if said.is_empty() { "refused" } else { said };
        log::debug!("{}: {who}: {said}", self.repository);
        state.tries.push(format!("{who}: {said}"));
    }

    fn denied(&self, transport: &Transport, state: &State) -> RegistryError {
        let (host, repository) = (transport.host(), self.repository.clone());
        if self.candidates.is_empty() && state.challenge.is_some() {
            RegistryError::NoCredential { host, repository }
        } else {
            RegistryError::Refused { host, repository, tries: state.tries.clone() }
        }
    }
}
