//! A connection step by step: name, TCP, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::hosts::RegistryHost;
use super::{RegistryError, tls, tls_fault};

/// How far a connection came.
#[derive(Debug)]
pub(crate) enum Dialed {
    /// The name has no address.
    NoName(String),
    /// Nobody answers.
    NoTcp { addresses: Vec<SocketAddr>, why: String },
    /// There is no TLS.
    NoTls { address: SocketAddr, why: String, plain: bool },
    /// All is well; the protocol's version, unless it is plain.
    Up { address: SocketAddr, version: Option<String> },
}

/// Connects to a host as a request would.
pub(crate) async fn dial(host: &RegistryHost) -> Result<Dialed, RegistryError> {
    let name = host.url.host_str().unwrap_or_default();
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let port = host.url.port_or_known_default().unwrap_or(443);
    let found = timeout(host.dial_timeout, tokio::net::lookup_host((name, port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Ok(Dialed::NoName(error.to_string())),
        Err(_) => return Ok(Dialed::NoName("no answer in time".to_owned())),
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
            let (why, plain) = fault(&error);
            Dialed::NoTls { address, why, plain }
        }
        Err(_) => Dialed::NoTls { address, why: "no answer in time".to_owned(), plain: false },
    })
}

async fn tcp(
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<(TcpStream, SocketAddr), String> {
    let mut why = "the name has no address".to_owned();
    for address in addresses {
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = "no answer in time".to_owned(),
        }
    }
    Err(why)
}

/// What is wrong, and whether the other side does not speak TLS at all.
fn fault(error: &io::Error) -> (String, bool) {
    let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
    let plain = matches!(tls, Some(rustls::Error::InvalidMessage(_)))
        || matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    (tls.map_or_else(|| error.to_string(), tls_fault), plain)
}

/// Whether a host on this machine speaks TLS; one that is not there counts as one that does.
pub(super) async fn speaks_tls(host: &RegistryHost) -> Result<bool, RegistryError> {
    Ok(!matches!(dial(host).await?, Dialed::NoTls { plain: true, .. }))
}
