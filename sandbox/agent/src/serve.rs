//! Dials the host and serves it until it is gone.

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
use crate::guest::{self, Guest};
use crate::reaper::Reaper;
use crate::service::Service;
use crate::{forward, network, streams};

/// How long the host may take to answer the dial.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two dials: the vsock device may be a moment late.
const PAUSE: Duration = Duration::from_millis(10);

/// What every device model takes at once (see `ConfigureRequest.stream_write_max`, which comes
/// too late for this connection).
const WRITE_MAX: usize = 16 * 1024;

/// Threads for what blocks; mounts and control groups, mostly.
const BLOCKING_MAX: usize = 32;

/// Serves the host until its connection ends.
pub(crate) fn serve(started_ns: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_MAX)
        .build();
    let runtime = runtime.doing(|| "starting the agent's runtime".into())?;
    let served = runtime.block_on(run(started_ns));
    // What blocks may do so for long; the machine ends now.
    runtime.shutdown_background();
    served
}

async fn run(started_ns: u64) -> Result<()> {
    let reaper = Reaper::default();
    reap(reaper.clone())?;
    network::loopback_up().await?;
    guest::use_new_memory();
    let guest = Arc::new(Guest::new(started_ns, reaper));
    let accepted = guest.clone();
    tokio::spawn(streams::accept(listen(STREAM_PORT)?, move |stream, header| {
        streams::connect(accepted.clone(), stream, header)
    }));
    let accepted = guest.clone();
    tokio::spawn(streams::accept(listen(FORWARD_PORT)?, move |stream, header| {
        forward::connect(accepted.clone(), stream, header)
    }));
    let host = dial().await?;
    let (ended, end) = oneshot::channel();
    let control = Control { stream: host, ended: Some(ended) };
    let listener = Listener::new(futures::stream::iter([Ok::<_, io::Error>(control)]));
    let service = create_agent(Arc::new(Service(guest)));
    let mut server = Server::new().add_listener(listener).register_service(service);
    server.start().await.doing(|| "serving the host".into())?;
    // Nothing is sent: the sender goes with the connection.
    let _ = end.await;
    Ok(())
}

/// Reaps until the machine ends.
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

async fn dial() -> Result<VsockStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT)).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= until => {
                return Err(error)
                    .doing(|| format!("dialling the host's vsock port {CONTROL_PORT}"));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// The host's connection. The sender goes when it ends, or when ttrpc drops it.
#[derive(Debug)]
struct Control {
    stream: VsockStream,
    ended: Option<oneshot::Sender<()>>,
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
            Poll::Ready(_) => drop(self.ended.take()),
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
