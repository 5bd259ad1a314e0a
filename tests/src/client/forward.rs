//! CRI's port-forward, spoken over a WebSocket as its streaming server offers it beside SPDY.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::stage::Stage;
use crate::bed::process::patience;

/// How long the other side may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// The channel of the connection's bytes.
const DATA: u8 = 0;

/// A connection to one port of a Pod's loopback.
#[derive(Debug)]
pub(crate) struct Forward {
    stream: BufReader<TcpStream>,
    /// The text of the error channel.
    pub(crate) error: String,
}

impl Forward {
    /// Asks the daemon for a connection to `port` of the Pod `id`.
    pub(crate) fn open(stage: &Stage, id: &str, port: u16) -> Result<Self> {
        let url = stage.cri.port_forward(id, port)?;
        let rest = url.strip_prefix("http://").with_context(|| format!("address {url:?}"))?;
        let (host, path) = rest.split_once('/').with_context(|| format!("address {url:?}"))?;
        let stream = TcpStream::connect(host).with_context(|| host.to_owned())?;
        stream.set_read_timeout(Some(patience(SILENCE)))?;
        stream.set_write_timeout(Some(patience(SILENCE)))?;
        let mut stream = BufReader::new(stream);
        // The key protects from caches, and there is none here.
        write!(
            stream.get_mut(),
            "GET /{path}?port={port} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nOrigin: http://{host}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: YnVsa2hlYWQtdGVzdGJlZA==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )?;
        let mut status = String::new();
        stream.read_line(&mut status)?;
        ensure!(status.contains(" 101 "), "port-forward: {status:?}");
        let mut line = String::new();
        while stream.read_line(&mut line)? > 2 {
            line.clear();
        }
        let mut forward = Self { stream, error: String::new() };
        // Each channel begins with the port's number.
        for channel in [DATA, 1] {
            let (got, bytes) = forward.frame()?.context("the connection was closed at once")?;
            ensure!((got, bytes.as_slice()) == (channel, &port.to_le_bytes()[..]), "{bytes:?}");
        }
        Ok(forward)
    }

    /// Sends bytes to the Pod.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(1 << 15) {
            self.write_frame(part)?;
        }
        Ok(())
    }

    /// The next bytes from the Pod; `None` when it has closed.
    pub(crate) fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            match self.frame()? {
                None => return Ok(None),
                Some((DATA, bytes)) => return Ok(Some(bytes)),
                Some((_, bytes)) => self.error.push_str(&String::from_utf8_lossy(&bytes)),
            }
        }
    }

    /// Everything until the Pod has closed.
    pub(crate) fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(bytes) = self.receive()? {
            all.extend(bytes);
        }
        Ok(all)
    }

    /// One binary frame of the data channel, masked as a client's must be; a mask of zeros is one.
    fn write_frame(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u16::try_from(bytes.len() + 1)?;
        let mut frame = vec![0x82, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        frame.extend([0; 4]);
        frame.push(DATA);
        frame.extend(bytes);
        Ok(self.stream.get_mut().write_all(&frame)?)
    }

    /// The next frame's channel and bytes; `None` at the end.
    fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let mut head = [0; 2];
            if let Err(e) = self.stream.read_exact(&mut head) {
                return match e.kind() {
                    std::io::ErrorKind::UnexpectedEof => Ok(None),
                    _ => Err(e).context("no frame"),
                };
            }
            let mut bytes = vec![0; self.length(head[1])?];
            self.stream.read_exact(&mut bytes)?;
            match head[0] & 0x0f {
                2 if bytes.is_empty() => bail!("a frame without a channel"),
                2 => return Ok(Some((bytes.remove(0), bytes))),
                8 => return Ok(None),
                9 | 10 => {}
                kind => bail!("a frame of kind {kind}"),
            }
        }
    }

    fn length(&mut self, short: u8) -> Result<usize> {
        ensure!(short & 0x80 == 0, "a masked frame from a server");
        let wide = match short {
            126 => 2,
            127 => 8,
            length => return Ok(length.into()),
        };
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes[8 - wide..])?;
        Ok(usize::try_from(u64::from_be_bytes(bytes))?)
    }
}
