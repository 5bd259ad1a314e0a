//! Port forwarding: the host's connections to ports on the guest's loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use agent_api::{ACCEPTED, REFUSED};
use agent_system::log_debug;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_vsock::VsockStream;

use crate::copy;
use crate::error::{Result, internal, invalid};
use crate::sandbox::Sandbox;
use crate::streams::answer;

/// How long connecting inside the guest may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects a stream to the port in its header.
pub(crate) async fn connect(sandbox: Arc<Sandbox>, mut stream: VsockStream, header: String) {
    let tcp = match dial(&header).await {
        Ok(tcp) => tcp,
        Err(error) => {
            log_debug(|| format!("refusing to forward to {header:?}: {error}"));
            answer(&mut stream, REFUSED).await;
            return;
        }
    };
    if !answer(&mut stream, ACCEPTED).await {
        return;
    }
    if let Err(error) = copy::forward(tcp, stream, sandbox.stream_write_max()).await {
        log_debug(|| format!("forwarding to port {header}: {error}"));
    }
}

async fn dial(header: &str) -> Result<TcpStream> {
    let port = header.parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| invalid(format!("{header:?} is not a port")))?;
    let mut last = String::new();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((address, port))).await {
            Ok(Ok(tcp)) => {
                // The host's client decides when to send.
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(internal(format!("connecting to port {port}: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[ignore = "needs ipv6"]
    async fn the_ipv6_loopback_is_tried_second() {
        let listener = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tcp = dial(&port.to_string()).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap().port(), port);
    }

    #[tokio::test]
    async fn a_port_is_between_1_and_65535() {
        for bad in ["0", "65536", "x", ""] {
            let error = dial(bad).await.unwrap_err().to_string();
            assert_eq!(error, format!("{bad:?} is not a port"));
        }
    }
}
