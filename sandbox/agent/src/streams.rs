//! The port for processes' streams, and headers of all streams.

use std::sync::Arc;
use std::time::Duration;

use agent_api::{ACCEPTED, HEADER_MAX, REFUSED};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_vsock::{VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::error::{Result, invalid};
use crate::guest::Guest;
use crate::stdio::Claim;
use crate::{console, copy};

/// How long the host may take for a header.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections whose header is not read yet.
const PENDING_MAX: usize = 64;

/// Accepts connections for ever and gives each, with its header, to `serve`.
pub(crate) async fn accept<F>(
    listener: VsockListener,
    serve: impl Fn(VsockStream, String) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let pending = Arc::new(Semaphore::new(PENDING_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = pending.clone().acquire_owned().await else { return };
        let mut stream = match listener.accept().await {
            // Containers may have vsock sockets of their own.
            Ok((_, peer)) if peer.cid() != VMADDR_CID_HOST => {
                console::error(&format!("refusing a stream from {peer}, which is not the host"));
                continue;
            }
            Ok((stream, _)) => stream,
            Err(error) => {
                console::error(&format!("accepting a stream: {error}"));
                // Descriptors may run out for a while.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let serve = serve.clone();
        tokio::spawn(async move {
            let header = header_line(&mut stream).await;
            drop(permit);
            match header {
                Ok(line) => serve(stream, line).await,
                Err(error) => console::debug(|| error.to_string()),
            }
        });
    }
}

/// Connects a stream to the process that its header names.
pub(crate) async fn connect(guest: Arc<Guest>, mut stream: VsockStream, header: String) {
    let claimed = parse(&header)
        .and_then(|(container, exec, name)| guest.containers.process(container, exec)?.claim(name));
    let claim = match claimed {
        Ok(claim) => claim,
        Err(error) => {
            console::debug(|| format!("refusing the stream {header:?}: {error}"));
            answer(&mut stream, REFUSED).await;
            return;
        }
    };
    if !answer(&mut stream, ACCEPTED).await {
        return;
    }
    let max = guest.stream_write_max();
    let done = match claim {
        Claim::Stdin(to, closing) => copy::stdin(stream, to, closing).await,
        Claim::Output(from) => copy::output(from, stream, max).await,
        Claim::Terminal(pty) => copy::terminal(pty, stream, max).await,
    };
    if let Err(error) = done {
        console::debug(|| format!("the stream {header:?} broke: {error}"));
    }
}

/// Answers a header. False when the host is gone.
pub(crate) async fn answer(stream: &mut VsockStream, byte: u8) -> bool {
    let written = stream.write_all(&[byte]).await;
    written.inspect_err(|error| console::debug(|| format!("answering a header: {error}"))).is_ok()
}

/// The container, the exec (empty for none) and the stream that a header names.
fn parse(header: &str) -> Result<(&str, &str, &str)> {
    let words: Vec<_> = header.split(' ').collect();
    match words.as_slice() {
        [container, "-", stream] => Ok((container, "", stream)),
        [container, exec, stream] => Ok((container, exec, stream)),
        _ => Err(invalid(format!("header {header:?} is not a container, an exec and a stream"))),
    }
}

/// Reads a header line, without its end.
async fn header_line(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let read = async {
        let mut line = Vec::new();
        // Byte by byte: what follows is not the header's.
        loop {
            match stream.read_u8().await {
                Ok(b'\n') => return Ok(line),
                Ok(byte) => line.push(byte),
                Err(error) => return Err(invalid(format!("a header ends early: {error}"))),
            }
            if line.len() >= HEADER_MAX {
                return Err(invalid(format!("a header is longer than {HEADER_MAX} bytes")));
            }
        }
    };
    let line = timeout(PATIENCE, read).await;
    let line =
        line.map_err(|_| invalid(format!("no header within {} s", PATIENCE.as_secs())))??;
    String::from_utf8(line).map_err(|_| invalid("a header is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_a_stream() {
        assert_eq!(parse("a - stdout").unwrap(), ("a", "", "stdout"));
        assert_eq!(parse("a e stdin").unwrap(), ("a", "e", "stdin"));
        for bad in ["", "a", "a - stdout x", "a  stdout x"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_header_is_one_bounded_line() {
        let mut two = &b"a - stdin\nbytes"[..];
        assert_eq!(header_line(&mut two).await.unwrap(), "a - stdin");
        assert_eq!(two, b"bytes");
        let long = vec![b'x'; HEADER_MAX];
        let error = header_line(&mut &long[..]).await.unwrap_err().to_string();
        assert_eq!(error, "a header is longer than 256 bytes");
        let longest = [vec![b'x'; HEADER_MAX - 1], vec![b'\n']].concat();
        assert_eq!(header_line(&mut &longest[..]).await.unwrap().len(), HEADER_MAX - 1);
        assert!(header_line(&mut &b"a - "[..]).await.is_err());
    }
}
