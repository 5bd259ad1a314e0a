//! Port forwarding: connections to the loopback of the Pod's namespace are taken to the sandbox.
//!
//! `kubectl port-forward` ends in containerd, which dials `localhost` inside the Pod's network
//! namespace, where nobody listens: the containers have another network stack. A program there gives
//! every such connection to a listener of the shim, whatever the port; the port that was meant
//! is the accepted connection's own. No port is known before, and no rule of a packet filter is
//! needed, which a node may not have or a mesh may own.

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

use crate::NetnsError;
use crate::bpf::{self, ProgramKind};
use crate::namespace::{Namespace, inside};
use crate::steer::{SLOT_V4, SLOT_V6, steer};

/// How many connections a Pod can have forwarded at once.
const CONNECTIONS: usize = 256;

/// How long the sandbox may take to accept a connection.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is read at once in each direction.
const BUFFER: usize = 16 * 1024;

/// How long accepting rests when it fails, as it does when descriptors run out.
const REST: Duration = Duration::from_millis(100);

/// A connection, of whatever kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What connects to ports of a sandbox.
#[async_trait]
pub trait Dial: std::fmt::Debug + Send + Sync {
    /// Connects to `port` of the sandbox's loopback. It is given up after some seconds.
    ///
    /// # Errors
    ///
    /// Why not; the connection that was to be forwarded is reset.
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>>;
}

/// Forwards for as long as it lives; connections end with it.
#[derive(Debug)]
pub struct PortForward {
    /// Keeps the program attached.
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
    /// Forwards from the namespace at `netns` to the sandbox that `dial` connects to. Where that
    /// cannot be, a warning says why: a Pod runs without what only `kubectl port-forward` needs.
    pub async fn offer(netns: &Path, dial: Arc<dyn Dial>) -> Option<Self> {
        match Self::start(netns, dial).await {
            Ok(forward) => Some(forward),
            Err(error) => {
                let error = sandbox_core::Error::from(error);
                log::warn!("ports of this Pod cannot be forwarded: {error}");
                None
            }
        }
    }

    async fn start(netns: &Path, dial: Arc<dyn Dial>) -> Result<Self, NetnsError> {
        let (attached, listeners) = inside(netns, Namespace::open(netns)?, set_up).await?;
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut forward = Self { _attached: attached, listeners: Vec::new() };
        for listener in listeners {
            let listener = TcpListener::from_std(listener)
                .map_err(|source| NetnsError::Forward { verb: "listening", source })?;
            let serve = serve(listener, Arc::clone(&dial), permits.clone());
            forward.listeners.push(tokio::spawn(serve));
        }
        Ok(forward)
    }

    /// Whether the kernel can do it.
    pub fn is_active(&self) -> bool {
        !self.listeners.is_empty()
    }
}

/// In the namespace: the listeners, and the program that gives connections to them.
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
            // The namespace has no IPv6.
            Err(error) if address.is_ipv6() && lacks_family(&error) => continue,
            listener => listener.map_err(failed("listening"))?,
        };
        listener.set_nonblocking(true).map_err(failed("listening"))?;
        bpf::put_socket(&map, slot, &listener).map_err(failed("keeping a socket"))?;
        listeners.push(listener);
    }
    let code = steer(map.as_raw_fd());
    let program = bpf::load_program(ProgramKind::LOOKUP, "steer", &code).map_err(unknown)?;
    let attached = bpf::attach(&program, namespace.file(), ProgramKind::LOOKUP);
    Ok((attached.map_err(unknown)?, listeners))
}

/// `EINVAL` is the kernel's answer for a kind of map, program or attachment it does not know.
fn unknown(source: io::Error) -> NetnsError {
    match source.raw_os_error() {
        Some(libc::EINVAL | libc::E2BIG | libc::ENOSYS | libc::EOPNOTSUPP) => {
            let mend = "Linux 5.9 or later with CONFIG_BPF_SYSCALL";
            NetnsError::Kernel { part: "BPF programs for socket lookup", mend, source }
        }
        _ => NetnsError::Forward { verb: "attaching a program", source },
    }
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Takes connections until it is aborted, and ends them with itself.
async fn serve(listener: TcpListener, dial: Arc<dyn Dial>, permits: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(permit) = permits.clone().try_acquire_owned() else {
                        log::warn!("a forwarded connection is refused: {CONNECTIONS} are open");
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
                    log::warn!("accepting a forwarded connection: {error}");
                    sleep(REST).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Forwards one connection to its end.
async fn relay(mut stream: TcpStream, dial: &dyn Dial) {
    let port = match stream.local_addr() {
        Ok(address) => address.port(),
        Err(error) => {
            log::warn!("a forwarded connection: {error}");
            return reset(stream);
        }
    };
    let dialled = timeout(HANDSHAKE, dial.dial(port)).await;
    let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut sandbox = match dialled {
        Ok(sandbox) => sandbox,
        Err(error) => {
            log::debug!("forwarding a connection to port {port}: {error}");
            return reset(stream);
        }
    };
    // Small packets are not held back; the connection works without it too.
    let _ = stream.set_nodelay(true);
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut sandbox, BUFFER, BUFFER).await;
    if let Err(error) = copied {
        log::debug!("a connection forwarded to port {port} ended: {error}");
        reset(stream);
    }
}

/// Closes a connection so that the other end learns that it failed.
fn reset(stream: TcpStream) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    // Without it the other end sees an orderly end: less clear, and no harm.
    let _ = setsockopt(&stream, sockopt::Linger, &at_once);
}

#[cfg(test)]
mod tests {
    use sandbox_core::{Classified, Kind};

    use super::*;

    #[test]
    fn tells_an_old_kernel_from_a_refusal() {
        let error = |code| unknown(io::Error::from_raw_os_error(code));
        for code in [libc::EINVAL, libc::E2BIG, libc::ENOSYS] {
            assert!(matches!(error(code), NetnsError::Kernel { .. }), "{code}");
        }
        assert_eq!(error(libc::EPERM).kind(), Kind::PermissionDenied);
    }
}
