//! Token servers: exchange a credential for a short-lived token for one repository.

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use sandbox_core::Secret;
use serde::Deserialize;

use super::error::RegistryError;
use super::host::{authority, is_loopback};
use super::response::{ErrorEntry, read_body, redact};
use super::transport::{Transport, without_query};
use crate::credential::Credential;

/// The `client_id` sent to token servers.
const CLIENT_ID: &str = "bulkhead";
/// The largest response of a token server.
const RESPONSE_LIMIT: usize = 256 * 1024;

/// A request for a token.
#[derive(Clone, Debug)]
pub(super) struct TokenRequest {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: String,
}

/// Why a token server returned no token.
#[derive(Debug)]
pub(super) enum TokenError {
    /// The server rejects this credential; another one may be accepted.
    Refused(String),
    /// The server fails for all credentials.
    Failed(RegistryError),
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<Secret>,
    access_token: Option<Secret>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorResponse {
    error: Option<String>,
    error_description: Option<String>,
    details: Option<String>,
    errors: Vec<ErrorEntry>,
}

/// Whether a credential for the registry may be sent to a token server.
///
/// It may if the server is on the registry's own host, or if the registry named it over verified
/// TLS; over plain HTTP only on loopback, or on the host of a registry that itself uses plain HTTP.
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

/// Gets a token; an anonymous one if there is no credential.
pub(super) async fn fetch(
    transport: &Transport,
    request: &TokenRequest,
    credential: Option<&Credential>,
) -> Result<Secret, TokenError> {
    let failed = |why: String| {
        let host = transport.host();
        let realm = without_query(&request.realm);
        TokenError::Failed(RegistryError::TokenServer { host, realm, why })
    };
    if !request.realm.username().is_empty() || request.realm.password().is_some() {
        return Err(failed("its URL contains a user".to_owned()));
    }
    if credential.is_some() {
        if let Err(why) = may_have_credential(transport, &request.realm) {
            return Err(failed(format!("no credential is sent to it: {why}")));
        }
    }
    let response = match credential {
        Some(Credential::Identity(token)) => refresh(transport, request, token).await,
        Some(Credential::Basic { username, password }) => {
            let basic = basic(username, password).ok_or_else(|| {
                TokenError::Refused("it cannot be sent in an HTTP header".to_owned())
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

/// `Basic base64(user:password)`, marked sensitive.
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

/// A header with a secret, marked sensitive.
pub(super) fn header(scheme: &str, secret: &Secret) -> Option<HeaderValue> {
    let text = Secret::new([scheme.as_bytes(), secret.expose()].concat());
    let mut value = HeaderValue::from_bytes(text.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn query(
    transport: &Transport,
    request: &TokenRequest,
    user: Option<(&String, HeaderValue)>,
) -> Result<Response, reqwest::Error> {
    let mut pairs = vec![("client_id", CLIENT_ID)];
    pairs.extend(request.service.as_deref().map(|service| ("service", service)));
    pairs
        .extend(request.scope.split(' ').filter(|scope| !scope.is_empty()).map(|it| ("scope", it)));
    pairs.extend(user.as_ref().map(|(username, _)| ("account", username.as_str())));
    let build = |builder: reqwest::RequestBuilder| {
        let builder = builder.query(&pairs);
        match &user {
            Some((_, basic)) => builder.header(AUTHORIZATION, basic.clone()),
            None => builder,
        }
    };
    transport.token(&request.realm, build, Method::GET).await
}

/// Exchanges an identity token, which is an OAuth 2 refresh token.
async fn refresh(
    transport: &Transport,
    request: &TokenRequest,
    token: &Secret,
) -> Result<Response, reqwest::Error> {
    let pairs = [
        ("grant_type", "refresh_token"),
        ("service", request.service.as_deref().unwrap_or_default()),
        ("client_id", CLIENT_ID),
        ("scope", request.scope.as_str()),
        ("refresh_token", token.expose_text().unwrap_or_default()),
    ];
    transport.token(&request.realm, |builder| builder.form(&pairs), Method::POST).await
}

async fn read(
    response: Response,
    credential: Option<&Credential>,
    failed: impl Fn(String) -> TokenError,
) -> Result<Secret, TokenError> {
    let status = response.status();
    let body = read_body(response, RESPONSE_LIMIT).await;
    let body = Secret::new(body.map_err(|error| failed(error.to_string()))?);
    if status == StatusCode::OK {
        let parsed: Result<TokenResponse, _> = serde_json::from_slice(body.expose());
        let token = parsed.ok().and_then(|parsed| parsed.token.or(parsed.access_token));
        return token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| failed("its response contains no token".to_owned()));
    }
    let message = redact(&error_message(&body), credential);
    let suffix = if message.is_empty() { String::new() } else { format!(": {message}") };
    let identity = matches!(credential, Some(Credential::Identity(_)));
    match status.as_u16() {
        401 | 403 => {
            Err(TokenError::Refused(format!("its token server returned {status}{suffix}")))
        }
        // OAuth 2 uses one status for all errors; an expired token is `invalid_grant`.
        400 if identity => Err(TokenError::Refused(format!(
            "expired or revoked, its token server returned {status}{suffix}"
        ))),
        404 | 405 if identity => {
            Err(TokenError::Refused("its token server does not support identity tokens".to_owned()))
        }
        _ => Err(failed(format!("it returned {status}{suffix}"))),
    }
}

/// The message in an error response.
fn error_message(body: &Secret) -> String {
    let parsed: ErrorResponse = serde_json::from_slice(body.expose()).unwrap_or_default();
    let first = parsed.errors.into_iter().next().map(ErrorEntry::into_message);
    let described = parsed.error_description.or(parsed.details);
    match (parsed.error, described) {
        (Some(error), Some(described)) => format!("{error}, {described}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => first.unwrap_or_default(),
    }
}
