//! Token servers: a credential in, a short-lived token for one repository out.

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use sandbox_core::Secret;
use serde::Deserialize;

use super::RegistryError;
use super::hosts::{authority, is_loopback};
use super::transport::{Transport, shown};
use crate::credential::Credential;

/// How this client is known to token servers.
const CLIENT_ID: &str = "bulkhead";
/// The largest answer of a token server.
const ANSWER_LIMIT: usize = 256 * 1024;

/// A token server's address and what is asked of it.
#[derive(Clone, Debug)]
pub(super) struct TokenRequest {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: String,
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum NoToken {
    /// The server refuses this credential; another may do.
    Refused(String),
    /// Nobody will get one.
    Failed(RegistryError),
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fault {
    error: Option<String>,
    error_description: Option<String>,
    details: Option<String>,
    errors: Vec<super::Said>,
}

/// Whether a token server may be shown a credential that is for the registry.
///
/// It may if it is the registry's own host, or if the registry named it over a connection that
/// nobody else can write to; and never in the clear, but on this machine.
pub(super) fn may_have_credential(transport: &Transport, realm: &Url) -> Result<(), &'static str> {
    let registry = &transport.base;
    let local = |url: &Url| url.host_str().is_some_and(is_loopback);
    let both_local = local(registry) && local(realm);
    let same_host = registry.host_str() == realm.host_str();
    match realm.scheme() {
        "https" if same_host || both_local || transport.verified => Ok(()),
        "https" => Err("it is another host, and the registry did not name it over verified TLS"),
        "http" if both_local => Ok(()),
        "http" if same_host && registry.scheme() == "http" => Ok(()),
        "http" => Err("it is plain http"),
        _ => Err("it is neither https nor http"),
    }
}

/// Gets a token, as nobody if there is no credential.
pub(super) async fn fetch(
    transport: &Transport,
    request: &TokenRequest,
    credential: Option<&Credential>,
) -> Result<Secret, NoToken> {
    let failed = |why: String| {
        let (host, realm) = (transport.host(), shown(&request.realm));
        NoToken::Failed(RegistryError::TokenServer { host, realm, why })
    };
    if !request.realm.username().is_empty() || request.realm.password().is_some() {
        return Err(failed("its address names a user".to_owned()));
    }
    if credential.is_some() {
        if let Err(why) = may_have_credential(transport, &request.realm) {
            return Err(failed(format!("no credential is sent there: {why}")));
        }
    }
    let response = match credential {
        Some(Credential::Identity(token)) => refresh(transport, request, token).await,
        Some(Credential::Basic { username, password }) => {
            let basic = basic(username, password).ok_or_else(|| {
                NoToken::Refused("it cannot be sent in an HTTP header".to_owned())
            })?;
            query(transport, request, Some((username, basic))).await
        }
        Some(Credential::Registry(_)) | None => query(transport, request, None).await,
    };
    let response = response.map_err(|error| {
        let error = RegistryError::of_transport(&authority(&request.realm), &error);
        failed(error.to_string())
    })?;
    read(response, credential, failed).await
}

/// `Basic base64(user:password)`; its `Debug` is blank.
pub(super) fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    use base64::Engine as _;
    let mut pair = Vec::with_capacity(username.len() + 1 + password.expose().len());
    pair.extend_from_slice(username.as_bytes());
    pair.push(b':');
    pair.extend_from_slice(password.expose());
    let pair = Secret::new(pair);
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair.expose());
    header("Basic ", &Secret::new(encoded))
}

/// A header with a secret; its `Debug` is blank.
pub(super) fn header(scheme: &str, secret: &Secret) -> Option<HeaderValue> {
    let text = Secret::new([scheme.as_bytes(), secret.expose()].concat());
    let mut value = HeaderValue::from_bytes(text.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn query(
    transport: &Transport,
    ask: &TokenRequest,
    user: Option<(&String, HeaderValue)>,
) -> Result<Response, reqwest::Error> {
    let mut pairs = vec![("client_id", CLIENT_ID)];
    pairs.extend(ask.service.as_deref().map(|service| ("service", service)));
    pairs.extend(ask.scope.split(' ').filter(|scope| !scope.is_empty()).map(|it| ("scope", it)));
    pairs.extend(user.as_ref().map(|(username, _)| ("account", username.as_str())));
    let build = |mut request: reqwest::RequestBuilder| {
        request = request.query(&pairs);
        match &user {
            Some((_, basic)) => request.header(AUTHORIZATION, basic.clone()),
            None => request,
        }
    };
    transport.token(&ask.realm, build, Method::GET).await
}

/// OAuth 2: the identity token is a refresh token.
async fn refresh(
    transport: &Transport,
    ask: &TokenRequest,
    token: &Secret,
) -> Result<Response, reqwest::Error> {
    let pairs = [
        ("grant_type", "refresh_token"),
        ("service", ask.service.as_deref().unwrap_or_default()),
        ("client_id", CLIENT_ID),
        ("scope", ask.scope.as_str()),
        ("refresh_token", token.expose_text().unwrap_or_default()),
    ];
    transport.token(&ask.realm, |request| request.form(&pairs), Method::POST).await
}

async fn read(
    response: Response,
    credential: Option<&Credential>,
    failed: impl Fn(String) -> NoToken,
) -> Result<Secret, NoToken> {
    let status = response.status();
    let body = super::body(response, ANSWER_LIMIT).await;
    let body = Secret::new(body.map_err(|error| failed(error.to_string()))?);
    if status == StatusCode::OK {
        let answer: Result<Answer, _> = serde_json::from_slice(body.expose());
        let token = answer.ok().and_then(|answer| answer.token.or(answer.access_token));
        return token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| failed("its answer holds no token".to_owned()));
    }
    let said = super::redact(&fault(&body), credential);
    let told = if said.is_empty() { String::new() } else { format!(": {said}") };
    let identity = matches!(credential, Some(Credential::Identity(_)));
    match status.as_u16() {
        401 | 403 => Err(NoToken::Refused(format!("its token server answers {status}{told}"))),
        // OAuth 2 has one status for every fault; an expired token is `invalid_grant`.
        400 if identity => Err(NoToken::Refused(format!(
            "expired or revoked, its token server says {status}{told}"
        ))),
        404 | 405 if identity => {
            Err(NoToken::Refused("its token server takes no identity tokens".to_owned()))
        }
        _ => Err(failed(format!("it answers {status}{told}"))),
    }
}

/// What a token server says went wrong.
fn fault(body: &Secret) -> String {
    let fault: Fault = serde_json::from_slice(body.expose()).unwrap_or_default();
    let first = fault.errors.into_iter().next().map(|said| said.line());
    let described = fault.error_description.or(fault.details);
    match (fault.error, described) {
        (Some(error), Some(described)) => format!("{error}, {described}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => first.unwrap_or_default(),
    }
}
