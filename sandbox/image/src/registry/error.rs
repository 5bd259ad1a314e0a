//! What can go wrong between here and a registry, one clear line for each.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_core::{Classified, Kind};

use crate::credential::CredentialError;

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// `hosts.toml` says something that cannot be followed.
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
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key is none.
    #[error("{path}: {why}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS cannot be set up at all.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The address of a registry is none.
    #[error("{url:?} is no address: {why}")]
    Url {
        /// The address.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The host's name has no address.
    #[error("{host}: the name cannot be resolved; is it right, and does DNS work here?")]
    Name {
        /// Host and port.
        host: String,
    },
    /// Nothing answers there.
    #[error("{host}: cannot connect ({why}); is the registry up, and the port right?")]
    Connect {
        /// Host and port.
        host: String,
        /// What the system said.
        why: String,
    },
    /// The server's certificate is not trusted, or TLS failed otherwise.
    #[error("{host}: {why}")]
    Untrusted {
        /// Host and port.
        host: String,
        /// What is wrong and how it is mended.
        why: String,
    },
    /// The connection broke, or stalled.
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
    /// The registry wants to know who asks, and there is nothing to tell.
    #[error("{host} wants a credential for {repository}, and no source has one for it")]
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
        /// What was tried and what was said to it.
        tries: Vec<String>,
    },
    /// A token server did not give a token, for a reason that is no refusal.
    #[error("token server {realm} of {host}: {why}")]
    TokenServer {
        /// Host and port of the registry.
        host: String,
        /// The token server.
        realm: String,
        /// What is wrong.
        why: String,
    },
    /// There is no such image.
    #[error("{host} has no {what}")]
    NotFound {
        /// Host and port.
        host: String,
        /// The image or blob.
        what: String,
    },
    /// The registry wants fewer requests, for longer than a pull waits.
    #[error("{host} limits how often it may be asked (429); {}", patience(.after))]
    RateLimited {
        /// Host and port.
        host: String,
        /// After which time it may be asked again, if it says so.
        after: Option<Duration>,
    },
    /// Another answer than those a registry should give.
    #[error("{host} answers {status} to the request for {what}{}", told(.said))]
    Status {
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The image or blob.
        what: String,
        /// The answer's text.
        said: String,
    },
    /// A redirect that is not followed.
    #[error("{host} sends to {to:?}, which is not followed: {why}")]
    Redirect {
        /// Host and port.
        host: String,
        /// Where to, without its query.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// Content is not what its name says.
    #[error("{host} gives {what} that is not what it should be: {why}")]
    Corrupt {
        /// Host and port.
        host: String,
        /// The image or blob.
        what: String,
        /// The difference.
        why: String,
    },
}

fn patience(after: &Option<Duration>) -> String {
    match after {
        Some(after) => format!("try again in {} s", after.as_secs()),
        None => "try again later, or with a credential".to_owned(),
    }
}

fn told(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl RegistryError {
    /// Whether the same request may succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
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

    /// What reqwest says, told apart by the errors that it is made of.
    pub(crate) fn of_transport(host: &str, error: &reqwest::Error) -> Self {
        let host = host.to_owned();
        let mut why = String::new();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
        while let Some(error) = cause {
            if let Some(tls) = tls_error(error) {
                return Self::Untrusted { host, why: tls_fault(tls) };
            }
            why = error.to_string();
            if why.contains("dns error") || why.contains("lookup address") {
                return Self::Name { host };
            }
            cause = error.source();
        }
        let why = if error.is_timeout() { "no answer in time".to_owned() } else { why };
        if error.is_connect() { Self::Connect { host, why } } else { Self::Transport { host, why } }
    }
}

/// The TLS error in a chain of I/O errors, whose `source` would pass it over.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = error;
    loop {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        error = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    }
}

/// What a failed handshake means to an admin.
pub(crate) fn tls_fault(error: &rustls::Error) -> String {
    use rustls::CertificateError as Fault;
    match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            Fault::UnknownIssuer => "its certificate is signed by an authority that is not trusted \
                 here; name the authority as `ca` in hosts.toml"
                .to_owned(),
            Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
                "its certificate is for another host; is the name right?".to_owned()
            }
            Fault::Expired | Fault::ExpiredContext { .. } => "its certificate has expired".to_owned(),
            Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
                "its certificate is not valid yet; is this machine's clock right?".to_owned()
            }
            // The list is open.
            other => format!("its certificate is not accepted: {other}"),
        },
        rustls::Error::AlertReceived(alert) => format!(
            "it refuses the TLS connection ({alert:?}); it may want a client certificate (`client` in hosts.toml)"
        ),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; if it is meant to be plain http, say so in hosts.toml (server = \"http://...\")".to_owned()
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
