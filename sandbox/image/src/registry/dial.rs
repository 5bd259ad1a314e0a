//! Connects step by step: name resolution, TCP, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::{RegistryError, tls_message};
use super::host::RegistryHost;
use super::tls;

/// The outcome of a connection attempt.
#[derive(Debug)]
pub(crate) enum Dialed {
    /// The name does not resolve.
    NoName(String),
    /// No address accepts connections.
    NoTcp { addresses: Vec<SocketAddr>, why: String },
    /// The TLS handshake failed; `plain` if the server does not speak TLS.
    NoTls { address: SocketAddr, why: String, plain: bool },
    /// Connected; `version` is the TLS version, `None` for plain HTTP.
    Up { address: SocketAddr, version: Option<String> },
}

/// Connects to a host in the same way as a request.
pub(crate) async fn dial(host: &RegistryHost) -> Result<Dialed, RegistryError> {
    let name = host.url.host_str().unwrap_or_default();
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let port = host.url.port_or_known_default().unwrap_or(443);
    let found = timeout(host.dial_timeout, tokio::net::lookup_host((name, port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Ok(Dialed::NoName(error.to_string())),
        Err(_) => return Ok(Dialed::NoName("timed out".to_owned())),
    };
    let (stream, address) = match tcp(&addresses, host.dial_timeout).await {
        Ok(up) => up,
        Err(why) => return Ok(Dialed::NoTcp { addresses, why }),
    };
    if host.url.scheme() == "http" {
        return Ok(Dialed::Up { address, version: None });
    }
    let config = Arc::new(tls::config(&host.tls)?);
    let server = ServerName::try_from(name.to_owned())
        .map_err(|error| RegistryError::Tls(format!("{name:?}: {error}")))?;
    let handshake = TlsConnector::from(config).connect(server, stream);
    Ok(match timeout(host.dial_timeout, handshake).await {
        Ok(Ok(stream)) => {
            let version = stream.get_ref().1.protocol_version();
            Dialed::Up { address, version: version.map(|it| format!("{it:?}").replace('_', ".")) }
        }
        Ok(Err(error)) => {
            let (why, plain) = handshake_error(&error);
            Dialed::NoTls { address, why, plain }
        }
        Err(_) => Dialed::NoTls { address, why: "timed out".to_owned(), plain: false },
    })
}

async fn tcp(addresses: &[SocketAddr], limit: Duration) -> Result<(TcpStream, SocketAddr), String> {
    let mut why = "the name has no address".to_owned();
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = "timed out".to_owned(),
        }
    }
    Err(why)
}

/// The reason for a failed handshake, and whether the server does not speak TLS.
fn handshake_error(error: &io::Error) -> (String, bool) {
    let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
    let plain = matches!(tls, Some(rustls::Error::InvalidMessage(_)))
        || matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    (tls.map_or_else(|| error.to_string(), tls_message), plain)
}

/// Whether a loopback host speaks TLS; `true` if it cannot be reached, so that the request reports
/// why.
pub(super) async fn speaks_tls(host: &RegistryHost) -> Result<bool, RegistryError> {
    Ok(!matches!(dial(host).await?, Dialed::NoTls { plain: true, .. }))
}
