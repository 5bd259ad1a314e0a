//! The port for processes' streams, and the header line that every stream starts with.

use std::sync::Arc;
use std::time::Duration;

use agent_api::{ACCEPTED, HEADER_MAX, REFUSED};
use agent_system::{log_debug, log_error};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_vsock::{VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::copy;
use crate::error::{Result, invalid};
use crate::sandbox::Sandbox;
use crate::stdio::StreamEnd;

/// How long the host may take to send a header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Upper bound on connections whose header is not read yet.
const PENDING_MAX: usize = 64;

/// Accepts connections and passes each with its header to `serve`. Never returns.
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
            // Processes in containers can open vsock sockets as well.
            Ok((_, peer)) if peer.cid() != VMADDR_CID_HOST => {
                log_error(&format!("refusing a stream from {peer}, which is not the host"));
                continue;
            }
            Ok((stream, _)) => stream,
            Err(error) => {
                log_error(&format!("accepting a stream: {error}"));
                // The agent may be out of descriptors for a while.
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
                Err(error) => log_debug(|| error.to_string()),
            }
        });
    }
}

/// Connects a stream to the process in its header.
pub(crate) async fn connect(sandbox: Arc<Sandbox>, mut stream: VsockStream, header: String) {
    let end = match stream_end(&sandbox, &header) {
        Ok(end) => end,
        Err(error) => {
            log_debug(|| format!("refusing the stream {header:?}: {error}"));
            answer(&mut stream, REFUSED).await;
            return;
        }
    };
    if !answer(&mut stream, ACCEPTED).await {
        return;
    }
    let max = sandbox.stream_write_max();
    let done = match end {
        StreamEnd::Stdin(to, closing) => copy::stdin(stream, to, closing).await,
        StreamEnd::Output(from) => copy::output(from, stream, max).await,
        StreamEnd::Terminal(pty) => copy::terminal(pty, stream, max).await,
    };
    if let Err(error) = done {
        log_debug(|| format!("copying the stream {header:?}: {error}"));
    }
}

/// Takes the agent's end of the stream in a header.
fn stream_end(sandbox: &Sandbox, header: &str) -> Result<StreamEnd> {
    let (container, exec, stream) = parse(header)?;
    sandbox.containers.process(container, exec)?.connect(stream)
}

/// Answers a header. False if the host has closed the connection.
pub(crate) async fn answer(stream: &mut VsockStream, byte: u8) -> bool {
    let written = stream.write_all(&[byte]).await;
    written.inspect_err(|error| log_debug(|| format!("answering a header: {error}"))).is_ok()
}

/// The container, the exec (empty for none) and the stream in a header.
fn parse(header: &str) -> Result<(&str, &str, &str)> {
    let words: Vec<_> = header.split(' ').collect();
    match words.as_slice() {
        [container, "-", stream] => Ok((container, "", stream)),
        [container, exec, stream] => Ok((container, exec, stream)),
        _ => Err(invalid(format!(
            "header {header:?} does not consist of a container, an exec and a stream"
        ))),
    }
}

/// Reads a header line, without its newline.
async fn header_line(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let read = async {
        let mut line = Vec::new();
        // Byte by byte: the stream's data follows.
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
    let line = timeout(HEADER_TIMEOUT, read).await;
    let late = |_| invalid(format!("no header within {} s", HEADER_TIMEOUT.as_secs()));
    let line = line.map_err(late)??;
    String::from_utf8(line).map_err(|_| invalid("a header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_three_words() {
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
