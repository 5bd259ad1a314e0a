//! Copies between processes and the host's streams.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_vsock::{OwnedReadHalf, OwnedWriteHalf, VsockStream};

use crate::stdio::Pty;

/// Size in bytes of a copy's buffer.
const BUFFER: usize = 64 * 1024;

/// Input that the host sent before it asked to close stdin may still be on its way, because the
/// request has its own connection. After this much silence nothing more is expected.
const STDIN_SILENCE: Duration = Duration::from_millis(250);

/// A write that takes longer waited for the host's reader.
const BLOCKED: Duration = Duration::from_millis(2);

/// How long a connection stays open after its last write if the reader was slower: the VMM may
/// drop data that it has not passed on when the connection is closed.
const SETTLE: Duration = Duration::from_millis(50);

/// The host's end of a stream, to which at most `max` bytes are written at once.
#[derive(Debug)]
struct Output {
    stream: OwnedWriteHalf,
    max: usize,
    blocked: bool,
}

impl Output {
    fn new(stream: OwnedWriteHalf, max: usize) -> Self {
        Self { stream, max: max.clamp(1, BUFFER), blocked: false }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(self.max) {
            let began = Instant::now();
            self.stream.write_all(chunk).await?;
            self.blocked = began.elapsed() > BLOCKED;
        }
        Ok(())
    }

    /// Waits before the connection is closed, see [`SETTLE`].
    async fn settle(&self) {
        if self.blocked {
            sleep(SETTLE).await;
        }
    }
}

/// Copies a process's output to the host, until the last writer has closed it.
pub(crate) async fn output(
    mut from: pipe::Receiver,
    stream: VsockStream,
    max: usize,
) -> io::Result<()> {
    // A hybrid vsock connection cannot be half closed, so the read half is kept until the end.
    let (_reader, writer) = stream.into_split();
    let mut to = Output::new(writer, max);
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await? {
            0 => break,
            count => to.write(&buffer[..count]).await?,
        }
    }
    to.settle().await;
    Ok(())
}

/// Copies the host's input to a process, until the host closes the stream or asks to close stdin.
pub(crate) async fn stdin(
    mut from: impl AsyncRead + Unpin,
    mut to: pipe::Sender,
    mut closing: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let Some(count) = next_input(&mut from, &mut buffer, &mut closing).await? else {
            return Ok(());
        };
        to.write_all(&buffer[..count]).await?;
    }
}

/// Reads the next bytes; `None` at the end.
async fn next_input(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    closing: &mut watch::Receiver<bool>,
) -> io::Result<Option<usize>> {
    let closed = *closing.borrow_and_update();
    let count = if closed {
        match timeout(STDIN_SILENCE, from.read(buffer)).await {
            Ok(count) => count?,
            Err(_) => 0,
        }
    } else {
        let read = std::pin::pin!(from.read(buffer));
        let changed = std::pin::pin!(closing.changed());
        match select(read, changed).await {
            Either::Left((count, _)) => count?,
            Either::Right((Ok(()), read)) => match timeout(STDIN_SILENCE, read).await {
                Ok(count) => count?,
                Err(_) => 0,
            },
            // The process was deleted.
            Either::Right((Err(_), _)) => 0,
        }
    };
    Ok(Some(count).filter(|count| *count > 0))
}

/// Copies both ways between a terminal and the host, until either end is closed.
pub(crate) async fn terminal(
    pty: oneshot::Receiver<Arc<Pty>>,
    stream: VsockStream,
    max: usize,
) -> io::Result<()> {
    let Ok(pty) = pty.await else { return Ok(()) };
    let (mut reader, writer) = stream.into_split();
    let typed = pty.clone();
    let input = std::pin::pin!(async move {
        let mut buffer = vec![0; BUFFER / 16];
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok::<_, io::Error>(()),
                count => typed.write_all(&buffer[..count]).await?,
            }
        }
    });
    let shown = std::pin::pin!(async move {
        let mut to = Output::new(writer, max);
        let mut buffer = vec![0; BUFFER];
        loop {
            match pty.read(&mut buffer).await? {
                0 => break,
                count => to.write(&buffer[..count]).await?,
            }
        }
        to.settle().await;
        Ok::<_, io::Error>(())
    });
    match select(input, shown).await {
        // If no input can be written any more, there may still be output to read.
        Either::Left((Err(_), shown)) => shown.await,
        Either::Left((done, _)) | Either::Right((done, _)) => done,
    }
}

/// Copies both ways between a TCP connection and the host, until the TCP peer closes it. The host's
/// close is passed on as a half-close.
pub(crate) async fn forward(tcp: TcpStream, stream: VsockStream, max: usize) -> io::Result<()> {
    let (mut tcp_reader, mut tcp_writer) = tcp.into_split();
    let (mut reader, writer): (OwnedReadHalf, _) = stream.into_split();
    let inbound = async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            match reader.read(&mut buffer).await? {
                0 => return tcp_writer.shutdown().await,
                count => tcp_writer.write_all(&buffer[..count]).await?,
            }
        }
    };
    let outbound = async move {
        let mut to = Output::new(writer, max);
        let mut buffer = vec![0; BUFFER];
        loop {
            match tcp_reader.read(&mut buffer).await? {
                0 => break,
                count => to.write(&buffer[..count]).await?,
            }
        }
        to.settle().await;
        Ok::<_, io::Error>(())
    };
    match select(std::pin::pin!(inbound), std::pin::pin!(outbound)).await {
        Either::Left((done, outbound)) => done.and(outbound.await),
        Either::Right((done, _)) => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_sent_before_the_close_is_read() {
        let (mut host, guest) = tokio::io::duplex(16);
        let (to, mut process) = pipe::pipe().unwrap();
        let (close, closing) = watch::channel(false);
        let copied = tokio::spawn(stdin(guest, to, closing));
        close.send_replace(true);
        tokio::spawn(async move {
            for _ in 0..3 {
                host.write_all(b"0123456789abcdef").await.unwrap();
                sleep(STDIN_SILENCE / 3).await;
            }
            // The stream stays open, so only the close can end the copy.
            std::future::pending::<()>().await;
        });
        let mut read = String::new();
        process.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "0123456789abcdef".repeat(3));
        copied.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn closing_the_stream_closes_stdin() {
        let (mut host, guest) = tokio::io::duplex(16);
        let (to, mut process) = pipe::pipe().unwrap();
        let (_close, closing) = watch::channel(false);
        let copied = tokio::spawn(stdin(guest, to, closing));
        host.write_all(b"bye").await.unwrap();
        drop(host);
        let mut read = String::new();
        process.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "bye");
        copied.await.unwrap().unwrap();
    }
}
