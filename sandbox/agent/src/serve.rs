//! Connects to the host and serves it until the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agent_api::agent_ttrpc::create_agent;
use agent_api::{CONTROL_PORT, FORWARD_PORT, STREAM_PORT};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::error::{Doing, Result};
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::{forward, streams};

/// How long connecting to the host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two attempts: the vsock device may not be ready at once.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Upper bound in bytes on a write that every VMM accepts. `ConfigureRequest.stream_write_max`
/// arrives on this connection, so it cannot apply to it.
const WRITE_MAX: usize = 16 * 1024;

/// Upper bound on threads for blocking work: mounts and cgroups, mostly.
const BLOCKING_MAX: usize = 32;

/// Serves the host until its connection ends.
pub(crate) fn serve(started_ns: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_MAX)
        .build();
    let runtime = runtime.doing(|| "starting the agent's runtime".into())?;
    let served = runtime.block_on(run(started_ns));
    // The VM powers off: blocking work need not be waited for.
    runtime.shutdown_background();
    served
}

async fn run(started_ns: u64) -> Result<()> {
    let reaper = Reaper::default();
    reap(reaper.clone())?;
    let sandbox = Arc::new(Sandbox::new(started_ns, reaper));
    let of_streams = sandbox.clone();
    tokio::spawn(streams::accept(listen(STREAM_PORT)?, move |stream, header| {
        streams::connect(of_streams.clone(), stream, header)
    }));
    let of_forwards = sandbox.clone();
    tokio::spawn(streams::accept(listen(FORWARD_PORT)?, move |stream, header| {
        forward::connect(of_forwards.clone(), stream, header)
    }));
    let host = connect().await?;
    let (closed, wait_closed) = oneshot::channel();
    let control = Control { stream: host, closed: Some(closed) };
    let listener = Listener::new(futures::stream::iter([Ok::<_, io::Error>(control)]));
    let service = create_agent(Arc::new(Service(sandbox)));
    let mut server = Server::new().add_listener(listener).register_service(service);
    server.start().await.doing(|| "serving the host".into())?;
    // Nothing is sent: the sender is dropped when the connection is closed.
    let _ = wait_closed.await;
    Ok(())
}

/// Reaps exited processes from now on.
fn reap(reaper: Reaper) -> Result<()> {
    let mut children = signal(SignalKind::child()).doing(|| "watching for children".into())?;
    tokio::spawn(async move {
        while children.recv().await.is_some() {
            reaper.reap();
        }
    });
    Ok(())
}

fn listen(port: u32) -> Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .doing(|| format!("listening on vsock port {port}"))
}

async fn connect() -> Result<VsockStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT)).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(error)
                    .doing(|| format!("connecting to the host's vsock port {CONTROL_PORT}"));
            }
            Err(_) => sleep(RETRY_PAUSE).await,
        }
    }
}

/// The host's connection. Drops its sender at the end of the stream or with itself.
#[derive(Debug)]
struct Control {
    stream: VsockStream,
    closed: Option<oneshot::Sender<()>>,
}

impl AsyncRead for Control {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &read {
            Poll::Pending => {}
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
            Poll::Ready(_) => drop(self.closed.take()),
        }
        read
    }
}

impl AsyncWrite for Control {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = bytes.len().min(WRITE_MAX);
        Pin::new(&mut self.stream).poll_write(cx, &bytes[..most])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
