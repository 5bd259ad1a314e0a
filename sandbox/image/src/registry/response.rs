//! Bodies of responses: bounded, and error messages without secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Response;
use sandbox_core::Secret;
use serde::Deserialize;

use super::error::RegistryError;
use super::host::authority;
use crate::credential::Credential;
use crate::text;

/// The largest error response that is read.
const ERROR_LIMIT: usize = 64 * 1024;

/// One entry of the `errors` in a response.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ErrorEntry {
    code: String,
    message: String,
}

impl ErrorEntry {
    /// The message, or the code if there is none.
    pub(super) fn into_message(self) -> String {
        if self.message.is_empty() { self.code } else { self.message }
    }
}

/// Reads the body of a response, at most `limit` bytes.
pub(crate) async fn read_body(
    mut response: Response,
    limit: usize,
) -> Result<Vec<u8>, RegistryError> {
    let host = authority(response.url());
    let failed = |error: reqwest::Error| RegistryError::of_transport(&host, &error);
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > limit {
            let what = "response".to_owned();
            let why = format!("it is larger than {limit} bytes");
            return Err(RegistryError::Corrupt { host, what, why });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The messages in an error response, in one line.
pub(super) async fn error_message(response: Response) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Errors {
        errors: Vec<ErrorEntry>,
    }
    // Without a readable body the caller reports the status alone.
    let body = read_body(response, ERROR_LIMIT).await.unwrap_or_default();
    let parsed: Errors = serde_json::from_slice(&body).unwrap_or_default();
    let messages: Vec<String> = parsed.errors.into_iter().map(ErrorEntry::into_message).collect();
    text::line(&messages.join(", "))
}

/// A server's text in one line, without a credential that the server may echo.
pub(super) fn redact(text: &str, credential: Option<&Credential>) -> String {
    let secret = credential.and_then(|it| it.secret().expose_text()).unwrap_or_default();
    let pair = match credential {
        Some(Credential::Basic { username, .. }) => STANDARD.encode(format!("{username}:{secret}")),
        Some(Credential::Identity(_) | Credential::Registry(_)) | None => String::new(),
    };
    let pair = Secret::new(pair);
    text::redacted(text, [secret, pair.expose_text().unwrap_or_default()])
}
