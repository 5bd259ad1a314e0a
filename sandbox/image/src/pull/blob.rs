//! Downloads a blob: streamed to a file and hashed on the way, resumed when the connection breaks.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use oci_spec::image::Descriptor;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::PullError;
use super::progress::Progress;
use crate::digest::{self, Verifier};
use crate::registry::{Endpoint, RegistryError, Repository, read_body};

/// Upper bound on chunks queued for the disk; each is at most a few hundred KiB.
const QUEUE: usize = 8;
/// A connection that breaks after fewer bytes than this counts as a failure.
const MIN_PROGRESS: u64 = 64 * 1024;

/// Downloads a blob into `file`, from the first host that serves it completely.
pub(super) async fn fetch(
    repository: &Repository,
    blob: &Descriptor,
    file: File,
    path: PathBuf,
    progress: &dyn Progress,
) -> Result<(), PullError> {
    let mut last = None;
    for endpoint in repository.endpoints() {
        let copy =
            file.try_clone().map_err(|source| PullError::Write { path: path.clone(), source });
        match from_host(endpoint, blob, copy?, progress).await {
            Ok(()) => {
                progress.done(blob);
                return Ok(());
            }
            Err(BlobError::Write(source)) => return Err(PullError::Write { path, source }),
            Err(BlobError::Registry(error)) => {
                tracing::debug!("{error}");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| not_found(repository, blob)).into())
}

/// Downloads a blob into memory. The caller has checked its size.
pub(super) async fn fetch_small(
    repository: &Repository,
    blob: &Descriptor,
) -> Result<Vec<u8>, PullError> {
    let mut last = not_found(repository, blob);
    for endpoint in repository.endpoints() {
        match small(endpoint, blob).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

fn not_found(repository: &Repository, blob: &Descriptor) -> RegistryError {
    let host = repository.place().host().to_owned();
    RegistryError::NotFound { host, what: format!("blob {}", blob.digest()) }
}

async fn small(endpoint: &Endpoint, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let response = endpoint.blob(blob.digest(), 0).await?;
    let limit = usize::try_from(blob.size()).unwrap_or(usize::MAX);
    let bytes = read_body(response, limit).await?;
    if digest::matches(blob.digest(), &bytes) {
        return Ok(bytes);
    }
    let what = format!("blob {}", blob.digest());
    let why = "its digest does not match".to_owned();
    Err(RegistryError::Corrupt { host: endpoint.host(), what, why })
}

enum BlobError {
    Write(io::Error),
    Registry(RegistryError),
}

impl From<RegistryError> for BlobError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

async fn from_host(
    endpoint: &Endpoint,
    blob: &Descriptor,
    file: File,
    progress: &dyn Progress,
) -> Result<(), BlobError> {
    let what = format!("blob {}", blob.digest());
    let corrupt = |why: String| {
        BlobError::Registry(RegistryError::Corrupt {
            host: endpoint.host(),
            what: what.clone(),
            why,
        })
    };
    let verifier = Verifier::new(blob.digest())
        .ok_or_else(|| corrupt("the algorithm of its digest is not supported".to_owned()))?;
    let mut writer = Writer::start(file, verifier);
    let mut failures = 0;
    loop {
        let before = writer.sent;
        let broke = match stream(endpoint, blob, &mut writer, progress).await {
            Ok(()) => break,
            Err(Stop::Writer) => {
                return Err(match writer.finish().await {
                    Err(error) => BlobError::Write(error),
                    Ok(_) => unreachable!("the writer stops early only with an error"),
                });
            }
            Err(Stop::Corrupt(why)) => return Err(corrupt(why)),
            Err(Stop::Registry(error)) => return Err(error.into()),
            Err(Stop::Broke(why)) => why,
        };
        failures = if writer.sent - before >= MIN_PROGRESS { 1 } else { failures + 1 };
        if failures >= endpoint.retry().attempts {
            let sent = writer.sent;
            let size = blob.size();
            return Err(corrupt(format!("it ends after {sent} of {size} bytes ({broke})")));
        }
        tracing::debug!(offset = writer.sent, "{what}: {broke}; resuming");
        tokio::time::sleep(endpoint.retry().pause(failures)).await;
    }
    let digest = writer.finish().await.map_err(BlobError::Write)?;
    if digest == blob.digest().as_ref() {
        Ok(())
    } else {
        Err(corrupt(format!("its digest is {digest}")))
    }
}

enum Stop {
    /// The writer failed; [`Writer::finish`] returns the error.
    Writer,
    Corrupt(String),
    Registry(RegistryError),
    /// The connection broke; the rest can be requested on another one.
    Broke(String),
}

/// Requests the rest of the blob once.
async fn stream(
    endpoint: &Endpoint,
    blob: &Descriptor,
    writer: &mut Writer,
    progress: &dyn Progress,
) -> Result<(), Stop> {
    let from = writer.sent;
    if from == blob.size() {
        return Ok(());
    }
    let mut response = endpoint.blob(blob.digest(), from).await.map_err(Stop::Registry)?;
    let mut skip = 0;
    if response.status() == 206 {
        let range = response.headers().get(CONTENT_RANGE).and_then(|it| it.to_str().ok());
        let wanted = format!("bytes {from}-");
        if !range.is_some_and(|range| range.starts_with(&wanted)) {
            return Err(Stop::Corrupt(format!(
                "the response to a request from byte {from} has another range"
            )));
        }
    } else {
        skip = from;
        // Also fails for a content coding, whose length is not the blob's.
        if let Some(length) = response.content_length().filter(|length| *length != blob.size()) {
            let size = blob.size();
            return Err(Stop::Corrupt(format!(
                "it has {length} bytes, but {size} in the manifest"
            )));
        }
    }
    loop {
        let mut bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) if writer.sent == blob.size() => return Ok(()),
            Ok(None) => return Err(Stop::Broke("the response ended".to_owned())),
            Err(error) => {
                return Err(Stop::Broke(RegistryError::of_transport("", &error).cause()));
            }
        };
        let known = skip.min(bytes.len() as u64);
        skip -= known;
        // Fits: at most `bytes.len()`.
        let _ = bytes.split_to(known as usize);
        if writer.sent + bytes.len() as u64 > blob.size() {
            let size = blob.size();
            return Err(Stop::Corrupt(format!(
                "it has more bytes than the {size} of the manifest"
            )));
        }
        if !bytes.is_empty() {
            writer.send(bytes).await?;
            progress.reached(blob, writer.sent);
        }
    }
}

/// Writes and hashes on a blocking thread, concurrently with the download.
struct Writer {
    sender: mpsc::Sender<Bytes>,
    thread: JoinHandle<io::Result<String>>,
    sent: u64,
}

impl Writer {
    fn start(mut file: File, mut verifier: Verifier) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
        let thread = tokio::task::spawn_blocking(move || {
            // Discard the bytes of a host that failed.
            file.set_len(0)?;
            file.rewind()?;
            while let Some(bytes) = receiver.blocking_recv() {
                file.write_all(&bytes)?;
                verifier.update(&bytes);
            }
            file.sync_data()?;
            Ok(verifier.finish())
        });
        Self { sender, thread, sent: 0 }
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Stop> {
        let length = bytes.len() as u64;
        self.sender.send(bytes).await.map_err(|_| Stop::Writer)?;
        self.sent += length;
        Ok(())
    }

    /// Waits until the data is on the disk; returns its digest.
    async fn finish(self) -> io::Result<String> {
        drop(self.sender);
        self.thread.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
