//! A scripted HTTP server that records the requests.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Includes the query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The whole request as searchable text.
    pub(crate) fn whole(&self) -> String {
        format!("{self:?} {}", String::from_utf8_lossy(&self.body))
    }
}

/// A response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// `Content-Length`, if not the length of the body.
    pub(crate) length: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on loopback; stopped on drop.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn plain(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, handler)
    }

    pub(crate) fn start(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            Self { address, asked: Arc::default(), stopped: Arc::new(AtomicBool::new(false)) };
        let log = Arc::clone(&server.asked);
        let stopped = Arc::clone(&server.stopped);
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let tls = tls.clone();
                let log = Arc::clone(&log);
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || serve(stream, tls, &log, &*handler));
            }
        });
        server
    }

    /// Host and port.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// The number of requests that contain `text`.
    pub(crate) fn saw(&self, text: &str) -> usize {
        self.asked().iter().filter(|request| request.whole().contains(text)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread in `accept`.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    log: &Mutex<Vec<Request>>,
    handler: &Handler,
) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    match tls {
        None => talk(stream, log, handler),
        Some(config) => {
            let connection = ServerConnection::new(config).unwrap();
            talk(StreamOwned::new(connection, stream), log, handler);
        }
    }
}

/// Handles the requests of one connection.
fn talk(stream: impl Read + Write, log: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream) {
        log.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        let announced = reply.length.unwrap_or(reply.body.len());
        let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {announced}\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let stream = stream.get_mut();
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply.body));
        if sent.and_then(|()| stream.flush()).is_err() || announced != reply.body.len() {
            return;
        }
    }
}

fn read(stream: &mut impl std::io::BufRead) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let method = words.next()?.to_owned();
    let path = words.next()?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    let length = request.header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).ok()?;
    Some(request)
}
