//! Port forwarding: relays connections to the loopback of the Pod's namespace to the sandbox.
//!
//! For `kubectl port-forward`, containerd connects to `localhost` in the Pod's network namespace,
//! where nothing listens: the containers have their own network stack. A BPF program there assigns
//! every such connection to a listener of the shim, whatever its port, which is the accepted
//! connection's local port. Ports need not be known in advance, and no packet filter rules are
//! needed, which a node may not support or a service mesh may manage.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::bpf::{self, ProgramKind};
use crate::error::NetnsError;
use crate::namespace::{Namespace, inside};
use crate::steer::{SLOT_V4, SLOT_V6, steer};

/// Upper bound on a Pod's forwarded connections.
const CONNECTIONS_MAX: usize = 256;

/// How long the sandbox may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Size in bytes of the buffer for each direction.
const BUFFER: usize = 16 * 1024;

/// Pause after a failed accept, for instance when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to ports of a sandbox.
#[async_trait]
pub trait Dial: std::fmt::Debug + Send + Sync {
    /// Connects to `port` on the sandbox's loopback. The caller sets the timeout.
    ///
    /// # Errors
    ///
    /// The connection error; the connection that was to be forwarded is reset.
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>>;
}

/// Forwards connections until it is dropped, which closes them.
#[derive(Debug)]
pub struct PortForward {
    /// The program is attached while this is open.
    _attached: OwnedFd,
    listeners: Vec<JoinHandle<()>>,
}

impl Drop for PortForward {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

impl PortForward {
    /// Forwards from the namespace at `netns` to the sandbox that `dial` connects to. Logs a warning
    /// and returns `None` if that is impossible: only `kubectl port-forward` needs it.
    pub async fn offer(netns: &Path, dial: Arc<dyn Dial>) -> Option<Self> {
        match Self::start(netns, dial).await {
            Ok(forward) => Some(forward),
            Err(error) => {
                let error = sandbox_host::Error::from(error);
                tracing::warn!("ports of this Pod cannot be forwarded: {error}");
                None
            }
        }
    }

    async fn start(netns: &Path, dial: Arc<dyn Dial>) -> Result<Self, NetnsError> {
        let (attached, listeners) = inside(netns, Namespace::open(netns)?, set_up).await?;
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut forward = Self { _attached: attached, listeners: Vec::new() };
        for listener in listeners {
            let listener = TcpListener::from_std(listener)
                .map_err(|source| NetnsError::Forward { verb: "listening", source })?;
            let serve = serve(listener, Arc::clone(&dial), permits.clone());
            forward.listeners.push(tokio::spawn(serve));
        }
        Ok(forward)
    }

    /// Whether there is a listener.
    pub fn is_active(&self) -> bool {
        !self.listeners.is_empty()
    }
}

/// Creates the listeners and attaches the program that assigns connections to them. Runs in the
/// namespace.
fn set_up(namespace: &Namespace) -> Result<(OwnedFd, Vec<StdListener>), NetnsError> {
    let failed = |verb| move |source| NetnsError::Forward { verb, source };
    let map = bpf::socket_map(2).map_err(unknown)?;
    let mut listeners = Vec::new();
    let places = [
        (SLOT_V4, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        (SLOT_V6, SocketAddr::from((Ipv6Addr::LOCALHOST, 0))),
    ];
    for (slot, address) in places {
        let listener = match StdListener::bind(address) {
            // IPv6 is disabled in the namespace.
            Err(error) if address.is_ipv6() && lacks_family(&error) => continue,
            listener => listener.map_err(failed("listening"))?,
        };
        listener.set_nonblocking(true).map_err(failed("listening"))?;
        bpf::put_socket(&map, slot, &listener).map_err(failed("storing a socket"))?;
        listeners.push(listener);
    }
    let code = steer(map.as_raw_fd());
    let program = bpf::load_program(ProgramKind::LOOKUP, "steer", &code).map_err(unknown)?;
    let attached = bpf::attach(&program, namespace.file(), ProgramKind::LOOKUP);
    Ok((attached.map_err(unknown)?, listeners))
}

/// The kernel returns `EINVAL` and the like for an unknown type of map, program or attachment.
fn unknown(source: io::Error) -> NetnsError {
    match source.raw_os_error() {
        Some(libc::EINVAL | libc::E2BIG | libc::ENOSYS | libc::EOPNOTSUPP) => {
            let fix = "Linux 5.9 or later with CONFIG_BPF_SYSCALL";
            NetnsError::Kernel { part: "BPF programs for socket lookup", fix, source }
        }
        _ => NetnsError::Forward { verb: "attaching a program", source },
    }
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Accepts and relays connections until it is aborted, which closes them.
async fn serve(listener: TcpListener, dial: Arc<dyn Dial>, permits: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(permit) = permits.clone().try_acquire_owned() else {
                        tracing::warn!("refusing a forwarded connection: {CONNECTIONS_MAX} are open");
                        reset(stream);
                        continue;
                    };
                    let dial = Arc::clone(&dial);
                    connections.spawn(async move {
                        relay(stream, &*dial).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("accepting a forwarded connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Relays one connection until it is closed.
async fn relay(mut stream: TcpStream, dial: &dyn Dial) {
    let port = match stream.local_addr() {
        Ok(address) => address.port(),
        Err(error) => {
            tracing::warn!("the port of a forwarded connection: {error}");
            return reset(stream);
        }
    };
    let dialled = timeout(DIAL_TIMEOUT, dial.dial(port)).await;
    let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut sandbox = match dialled {
        Ok(sandbox) => sandbox,
        Err(error) => {
            tracing::debug!(port, "connecting a forwarded connection: {error}");
            return reset(stream);
        }
    };
    // Only a matter of latency: the connection works without it.
    let _ = stream.set_nodelay(true);
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut sandbox, BUFFER, BUFFER).await;
    if let Err(error) = copied {
        tracing::debug!(port, "relaying a forwarded connection: {error}");
        reset(stream);
    }
}

/// Closes a connection with a reset, which reports the failure to the peer.
fn reset(stream: TcpStream) {
    let immediate = libc::linger { l_onoff: 1, l_linger: 0 };
    // If this fails the peer sees an orderly close, which is less clear but harmless.
    let _ = setsockopt(&stream, sockopt::Linger, &immediate);
}

#[cfg(test)]
mod tests {
    use sandbox_host::{Classified, Kind};

    use super::*;

    #[test]
    fn an_old_kernel_is_distinguished_from_a_refusal() {
        let error = |code| unknown(io::Error::from_raw_os_error(code));
        for code in [libc::EINVAL, libc::E2BIG, libc::ENOSYS] {
            assert!(matches!(error(code), NetnsError::Kernel { .. }), "{code}");
        }
        assert_eq!(error(libc::EPERM).kind(), Kind::PermissionDenied);
    }
}
