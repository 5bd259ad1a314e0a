//! Port forwarding: connections to the loopback of the Pod's namespace are taken to the guest.
//!
//! `kubectl port-forward` ends in containerd, which dials `localhost` inside the Pod's network
//! namespace, where nobody listens: the containers are in the guest. A program there gives
//! every such connection to a listener of the shim, whatever the port; the port that was meant
//! is the accepted connection's own. No port is known before, and no rule of a packet filter is
//! needed, which a node may not have or a mesh may own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_api::{ACCEPTED, FORWARD_PORT, REFUSED};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::bpf::{self, SLOT_V4, SLOT_V6};
use super::error::NetworkError;
use super::namespace::{Namespace, inside};
use super::sys::{self, ProgramKind};

/// How many connections a Pod can have forwarded at once.
const CONNECTIONS: usize = 256;

/// How long the guest may take to accept a connection.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is read at once in each direction.
const BUFFER: usize = 16 * 1024;

/// The longest answer of the hybrid vsock: `OK `, a number of 32 bits, and a line's end.
const ANSWER_MAX: usize = 16;

/// How long accepting rests when it fails, as it does when descriptors run out.
const REST: Duration = Duration::from_millis(100);

/// Forwards for as long as it lives; connections end with it.
#[derive(Debug)]
pub struct PortForward {
    /// Keeps the program attached.
    _attached: Option<OwnedFd>,
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
    /// Forwards from the namespace at `netns` to the guest behind the hybrid `vsock`.
    pub(super) async fn start(
        netns: &Path,
        namespace: Namespace,
        vsock: PathBuf,
    ) -> Result<Self, NetworkError> {
        let set_up = inside(netns, namespace, set_up).await;
        let (attached, listeners) = match set_up {
            Err(error @ NetworkError::Kernel { .. }) => {
                let error = sandbox_core::Error::from(error);
                log::warn!("ports of this Pod cannot be forwarded: {error}");
                return Ok(Self { _attached: None, listeners: Vec::new() });
            }
            set_up => set_up?,
        };
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let vsock: Arc<Path> = vsock.into();
        let mut forward = Self { _attached: Some(attached), listeners: Vec::new() };
        for listener in listeners {
            let listener = TcpListener::from_std(listener)
                .map_err(|source| NetworkError::Forward { verb: "listening", source })?;
            let serve = serve(listener, vsock.clone(), permits.clone());
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
fn set_up(namespace: &Namespace) -> Result<(OwnedFd, Vec<StdListener>), NetworkError> {
    let failed = |verb| move |source| NetworkError::Forward { verb, source };
    let map = sys::socket_map(2).map_err(unknown)?;
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
        sys::put_socket(&map, slot, &listener).map_err(failed("keeping a socket"))?;
        listeners.push(listener);
    }
    let code = bpf::steer(map.as_raw_fd());
    let program = sys::load_program(ProgramKind::LOOKUP, "steer", &code).map_err(unknown)?;
    let attached = sys::attach(&program, namespace.file(), ProgramKind::LOOKUP);
    Ok((attached.map_err(unknown)?, listeners))
}

/// `EINVAL` is the kernel's answer for a kind of map, program or attachment it does not know.
fn unknown(source: io::Error) -> NetworkError {
    match source.raw_os_error() {
        Some(libc::EINVAL | libc::E2BIG | libc::ENOSYS | libc::EOPNOTSUPP) => {
            let mend = "Linux 5.9 or later with CONFIG_BPF_SYSCALL";
            NetworkError::Kernel { part: "BPF programs for socket lookup", mend, source }
        }
        _ => NetworkError::Forward { verb: "attaching a program", source },
    }
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Takes connections until it is aborted, and ends them with itself.
async fn serve(listener: TcpListener, vsock: Arc<Path>, permits: Arc<Semaphore>) {
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
                    let vsock = vsock.clone();
                    connections.spawn(async move {
                        relay(stream, &vsock).await;
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
async fn relay(mut stream: TcpStream, vsock: &Path) {
    let port = match stream.local_addr() {
        Ok(address) => address.port(),
        Err(error) => {
            log::warn!("a forwarded connection: {error}");
            return reset(stream);
        }
    };
    let dialled = timeout(HANDSHAKE, dial(vsock, port)).await;
    let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut guest = match dialled {
        Ok(guest) => guest,
        Err(error) => {
            log::debug!("forwarding a connection to port {port}: {error}");
            return reset(stream);
        }
    };
    // Small packets are not held back; the connection works without it too.
    let _ = stream.set_nodelay(true);
    let copied = copy_bidirectional_with_sizes(&mut stream, &mut guest, BUFFER, BUFFER).await;
    if let Err(error) = copied {
        log::debug!("a connection forwarded to port {port} ended: {error}");
        reset(stream);
    }
}

/// Connects to `port` of the guest's loopback.
async fn dial(vsock: &Path, port: u16) -> io::Result<UnixStream> {
    let mut guest = UnixStream::connect(vsock).await?;
    guest.write_all(format!("CONNECT {FORWARD_PORT}\n").as_bytes()).await?;
    // Byte by byte: what comes after the line is the stream's.
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        if answer.len() == ANSWER_MAX {
            return Err(io::Error::other("the machine's vsock gave no answer that ends"));
        }
        answer.push(guest.read_u8().await?);
    }
    if !answer.starts_with(b"OK ") {
        let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
        return Err(io::Error::other(format!("the machine's vsock answered {answer:?}")));
    }
    guest.write_all(format!("{port}\n").as_bytes()).await?;
    match guest.read_u8().await? {
        ACCEPTED => Ok(guest),
        REFUSED => Err(io::ErrorKind::ConnectionRefused.into()),
        other => Err(io::Error::other(format!("the guest's agent answered {other}"))),
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
            assert!(matches!(error(code), NetworkError::Kernel { .. }), "{code}");
        }
        assert_eq!(error(libc::EPERM).kind(), Kind::PermissionDenied);
    }

    async fn dialled(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("vsock");
        let listener = tokio::net::UnixListener::bind(&path)?;
        let guest = async move {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(answer).await?;
            // Kept open, so that no end of file helps the host.
            sleep(Duration::from_millis(200)).await;
            io::Result::Ok(())
        };
        let (dialled, _) = tokio::join!(dial(&path, 80), guest);
        dialled
    }

    #[tokio::test]
    async fn takes_nothing_but_the_vsocks_answer_and_the_agents() {
        let mut stream = dialled(b"OK 1026\n\0rest").await.unwrap();
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest", "what follows is the stream's");
        for wrong in [&b"NO 1\n"[..], b"OK 11111111111111111111\n", b"OK 1\n\x02"] {
            assert_eq!(dialled(wrong).await.unwrap_err().kind(), io::ErrorKind::Other);
        }
        let refused = dialled(b"OK 1\n\x01").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
