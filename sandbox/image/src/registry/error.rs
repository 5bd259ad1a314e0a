//! Errors of the registry client, each a single line.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_core::{Classified, Kind};

use crate::credential::CredentialError;

/// A request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// `hosts.toml` is invalid.
    #[error("{path}: {why}")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong, without any value of a header.
        why: String,
    },
    /// A file of the registry's configuration cannot be read.
    #[error("cannot read {path}")]
    ReadHosts {
        /// The file or directory.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// A certificate or key is invalid.
    #[error("{path}: {why}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The URL of a registry is invalid.
    #[error("{url:?} is not a valid URL: {why}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The host's name does not resolve.
    #[error("{host}: the name cannot be resolved; is it right, and does DNS work here?")]
    Name {
        /// Host and port.
        host: String,
    },
    /// The host does not accept connections.
    #[error("{host}: cannot connect ({why}); is the registry up, and the port right?")]
    Connect {
        /// Host and port.
        host: String,
        /// The reason.
        why: String,
    },
    /// The server's certificate is not trusted, or TLS failed otherwise.
    #[error("{host}: {why}")]
    Untrusted {
        /// Host and port.
        host: String,
        /// What is wrong and how to fix it.
        why: String,
    },
    /// The connection broke or stalled.
    #[error("{host}: the connection failed: {why}")]
    Transport {
        /// Host and port.
        host: String,
        /// What happened.
        why: String,
    },
    /// The credentials cannot be read.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The registry requires a credential, and no source has one.
    #[error("{host} requires a credential for {repository}, and no source has one")]
    NoCredential {
        /// Host and port.
        host: String,
        /// The repository.
        repository: String,
    },
    /// Every credential was refused.
    #[error("{host} refuses access to {repository}: {}", .tries.join("; "))]
    Refused {
        /// Host and port.
        host: String,
        /// The repository.
        repository: String,
        /// The credentials tried, each with the registry's reason.
        tries: Vec<String>,
    },
    /// A token server returned no token for a reason other than a rejected credential.
    #[error("token server {realm} of {host}: {why}")]
    TokenServer {
        /// Host and port of the registry.
        host: String,
        /// The token server.
        realm: String,
        /// What is wrong.
        why: String,
    },
    /// The image or blob does not exist.
    #[error("{host} has no {what}")]
    NotFound {
        /// Host and port.
        host: String,
        /// The image or blob.
        what: String,
    },
    /// The registry limits requests, and the delay it asks for is longer than a pull waits.
    #[error("{host} limits the rate of requests (429); {}", retry_advice(.after))]
    RateLimited {
        /// Host and port.
        host: String,
        /// The delay from `Retry-After`.
        after: Option<Duration>,
    },
    /// An unexpected HTTP status.
    #[error("{host} returned status {status} for {what}{}", suffix(.message))]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The image or blob.
        what: String,
        /// The message in the response; may be empty.
        message: String,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects to {to:?}, which is not followed: {why}")]
    Redirect {
        /// Host and port.
        host: String,
        /// The target without its query.
        to: String,
        /// The reason.
        why: &'static str,
    },
    /// Content does not match its digest, size or media type.
    #[error("{host} returned an invalid {what}: {why}")]
    Corrupt {
        /// Host and port.
        host: String,
        /// The image or blob.
        what: String,
        /// What is wrong.
        why: String,
    },
}

fn retry_advice(after: &Option<Duration>) -> String {
    match after {
        Some(after) => format!("try again in {} s", after.as_secs()),
        None => "try again later, or with a credential".to_owned(),
    }
}

fn suffix(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl RegistryError {
    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Why a connection broke, without the host.
    pub(crate) fn cause(self) -> String {
        match self {
            Self::Connect { why, .. }
            | Self::Transport { why, .. }
            | Self::Untrusted { why, .. } => why,
            other => other.to_string(),
        }
    }

    /// Classifies an error of reqwest by its sources.
    pub(crate) fn of_transport(host: &str, error: &reqwest::Error) -> Self {
        let host = host.to_owned();
        let mut why = String::new();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
        while let Some(error) = cause {
            if let Some(tls) = tls_error(error) {
                return Self::Untrusted { host, why: tls_message(tls) };
            }
            why = error.to_string();
            if why.contains("dns error") || why.contains("lookup address") {
                return Self::Name { host };
            }
            cause = error.source();
        }
        let why = if error.is_timeout() { "timed out".to_owned() } else { why };
        if error.is_connect() { Self::Connect { host, why } } else { Self::Transport { host, why } }
    }
}

/// The TLS error within nested I/O errors; `io::Error::source` skips the error it wraps.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = error;
    loop {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        error = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    }
}

/// The message for a failed TLS handshake.
pub(super) fn tls_message(error: &rustls::Error) -> String {
    use rustls::CertificateError;
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer => {
                "its certificate is signed by an authority that is not trusted \
                 here; name the authority as `ca` in hosts.toml"
                    .to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another host; is the name right?".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; is this machine's clock right?".to_owned()
            }
            // The enum is non-exhaustive.
            other => format!("its certificate is not accepted: {other}"),
        },
        rustls::Error::AlertReceived(alert) => format!(
            "it refuses the TLS connection ({alert:?}); \
             it may require a client certificate (`client` in hosts.toml)"
        ),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; for plain http, set server = \"http://...\" in hosts.toml"
                .to_owned()
        }
        other => format!("TLS failed: {other}"),
    }
}

impl Classified for RegistryError {
    fn kind(&self) -> Kind {
        match self {
            Self::Hosts { .. } | Self::Certificate { .. } | Self::Url { .. } => {
                Kind::InvalidArgument
            }
            Self::ReadHosts { .. } | Self::Tls(_) | Self::Redirect { .. } => {
                Kind::FailedPrecondition
            }
            Self::Name { .. }
            | Self::Connect { .. }
            | Self::Transport { .. }
            | Self::TokenServer { .. }
            | Self::RateLimited { .. } => Kind::Unavailable,
            Self::Status { status, .. } if *status >= 500 => Kind::Unavailable,
            Self::Credential(error) => error.kind(),
            Self::NoCredential { .. } | Self::Refused { .. } | Self::Untrusted { .. } => {
                Kind::PermissionDenied
            }
            Self::NotFound { .. } => Kind::NotFound,
            Self::Status { .. } | Self::Corrupt { .. } => Kind::Internal,
        }
    }
}
