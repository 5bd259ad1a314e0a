//! A read-only registry of the images on a port of its own: containerd pulls from it whichever host
//! an image's name has.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How long a client may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// What can be pulled.
#[derive(Debug, Default)]
struct Store {
    /// By digest.
    blobs: HashMap<String, Vec<u8>>,
    /// Digests by `REPOSITORY:TAG`, without the registry's host.
    tags: HashMap<String, String>,
}

/// Serves the images of the OCI archive `images` as long as this process lives; returns the address.
pub(super) fn serve(images: &[u8]) -> Result<SocketAddr> {
    let store = Arc::new(Store::read(images)?);
    let listener = TcpListener::bind("127.0.0.1:0").context("a port for the images")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let store = Arc::clone(&store);
            // A client may close its connection early.
            std::thread::spawn(move || store.answer(stream).ok());
        }
    });
    Ok(address)
}

impl Store {
    fn read(archive: &[u8]) -> Result<Self> {
        let mut store = Self::default();
        let mut index = Value::Null;
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            match path.strip_prefix("blobs/sha256/") {
                Some(digest) => drop(store.blobs.insert(format!("sha256:{digest}"), content)),
                None if path == "index.json" => index = serde_json::from_slice(&content)?,
                None => {}
            }
        }
        for manifest in index["manifests"].as_array().into_iter().flatten() {
            let name = manifest["annotations"]["io.containerd.image.name"].as_str();
            let digest = manifest["digest"].as_str();
            let (name, digest) = name.zip(digest).context("index.json: an image has no name")?;
            let (_, name) = name.split_once('/').with_context(|| format!("{name}: no host"))?;
            store.tags.insert(name.to_owned(), digest.to_owned());
        }
        Ok(store)
    }

    /// The digest, the bytes and the media type for the path of a request.
    fn find(&self, path: &str) -> Option<(&str, &[u8], &'static str)> {
        let path = path.split('?').next()?.strip_prefix("/v2/")?;
        let (repository, kind, reference) = match path.rsplit_once("/manifests/") {
            Some((repository, reference)) => (repository, MANIFEST, reference),
            None => {
                let (repository, digest) = path.rsplit_once("/blobs/")?;
                (repository, "application/octet-stream", digest)
            }
        };
        let digest = match reference.contains(':') {
            true => reference,
            false => self.tags.get(&format!("{repository}:{reference}"))?,
        };
        let (digest, bytes) = self.blobs.get_key_value(digest)?;
        Some((digest, bytes, kind))
    }

    fn answer(&self, stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().context("no request")??;
        while !lines.next().context("no end of the headers")??.is_empty() {}
        let mut words = request.split(' ');
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default();
        let mut stream = stream;
        if path.trim_end_matches('/') == "/v2" {
            return Ok(write!(stream, "HTTP/1.1 200 OK\r\n{CLOSE}Content-Length: 0\r\n\r\n")?);
        }
        let Some((digest, bytes, kind)) = self.find(path) else {
            return Ok(write!(
                stream,
                "HTTP/1.1 404 Not Found\r\n{CLOSE}Content-Length: 0\r\n\r\n"
            )?);
        };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\n{CLOSE}Content-Type: {kind}\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: {digest}\r\n\r\n",
            bytes.len()
        )?;
        if method != "HEAD" {
            stream.write_all(bytes)?;
        }
        Ok(())
    }
}

/// Each connection has one request.
const CLOSE: &str = "Connection: close\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::image::Archive;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn an_image_is_pulled_by_tag_and_by_digest() {
        let mut archive = Archive::new();
        let config = serde_json::json!({});
        let digest = archive.image(&["a.example/b/c:1"], &[], &config).unwrap();
        let address = serve(&archive.finish().unwrap()).unwrap();

        let head = ask(address, "HEAD /v2/b/c/manifests/1?ns=a.example");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.contains(&digest) && head.contains(MANIFEST), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        let manifest = ask(address, &format!("GET /v2/b/c/manifests/{digest}"));
        let body = manifest.split_once("\r\n\r\n").unwrap().1;
        let body: Value = serde_json::from_str(body).unwrap();
        let blob = body["config"]["digest"].as_str().unwrap();
        assert!(ask(address, &format!("GET /v2/b/c/blobs/{blob}")).contains("diff_ids"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let address = serve(&Archive::new().finish().unwrap()).unwrap();
        assert!(ask(address, "GET /v2/b/c/manifests/1").starts_with("HTTP/1.1 404"));
        assert!(ask(address, "GET /v2/").starts_with("HTTP/1.1 200"));
    }
}
