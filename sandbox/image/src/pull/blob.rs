//! One blob: streamed to its file and hashed on the way, resumed where it broke off.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use oci_spec::image::Descriptor;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Progress, PullError};
use crate::digest::{self, Verifier};
use crate::registry::{self, Endpoint, RegistryError, Repository};

/// How many pieces wait for the disk; each is a read of at most some hundred KiB.
const QUEUE: usize = 8;
/// A connection that brings less before it breaks counts as a failure.
const HEADWAY: u64 = 64 * 1024;

/// Gets a blob into `file`, from the first host that gives it whole.
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
            Err(Fault::Write(source)) => return Err(PullError::Write { path, source }),
            Err(Fault::Registry(error)) => {
                log::debug!("{error}");
                last = Some(error);
            }
        }
    }
    let host = repository.place().host().to_owned();
    let missing = || RegistryError::NotFound { host, what: format!("blob {}", blob.digest()) };
    Err(last.unwrap_or_else(missing).into())
}

/// Gets a blob whose size was checked before into memory.
pub(super) async fn fetch_small(
    repository: &Repository,
    blob: &Descriptor,
) -> Result<Vec<u8>, PullError> {
    let what = format!("blob {}", blob.digest());
    let mut last = RegistryError::NotFound { host: repository.place().host().to_owned(), what };
    for endpoint in repository.endpoints() {
        match small(endpoint, blob).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

async fn small(endpoint: &Endpoint, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let response = endpoint.blob(blob.digest(), 0).await?;
    let limit = usize::try_from(blob.size()).unwrap_or(usize::MAX);
    let bytes = registry::body(response, limit).await?;
    if digest::is_of(blob.digest(), &bytes) {
        return Ok(bytes);
    }
    let (what, why) = (format!("blob {}", blob.digest()), "its digest is another".to_owned());
    Err(RegistryError::Corrupt { host: endpoint.host(), what, why })
}

enum Fault {
    Write(io::Error),
    Registry(RegistryError),
}

impl From<RegistryError> for Fault {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

async fn from_host(
    endpoint: &Endpoint,
    blob: &Descriptor,
    file: File,
    progress: &dyn Progress,
) -> Result<(), Fault> {
    let what = format!("blob {}", blob.digest());
    let corrupt = |why: String| {
        Fault::Registry(RegistryError::Corrupt { host: endpoint.host(), what: what.clone(), why })
    };
    let verifier = Verifier::new(blob.digest())
        .ok_or_else(|| corrupt("its digest is of no kind that can be verified".to_owned()))?;
    let mut writer = Writer::start(file, verifier);
    let mut failures = 0;
    loop {
        let before = writer.sent;
        let broke = match stream(endpoint, blob, &mut writer, progress).await {
            Ok(()) => break,
            Err(Stop::Writer) => {
                return Err(match writer.finish().await {
                    Err(error) => Fault::Write(error),
                    Ok(_) => corrupt("it was not written, for no known reason".to_owned()),
                });
            }
            Err(Stop::Corrupt(why)) => return Err(corrupt(why)),
            Err(Stop::Registry(error)) => return Err(error.into()),
            Err(Stop::Broke(why)) => why,
        };
        failures = if writer.sent - before >= HEADWAY { 1 } else { failures + 1 };
        if failures >= endpoint.retry().attempts {
            let (sent, size) = (writer.sent, blob.size());
            return Err(corrupt(format!("it ends after {sent} of {size} bytes ({broke})")));
        }
        log::debug!("{what}: {broke}; going on at byte {}", writer.sent);
        tokio::time::sleep(endpoint.retry().pause(failures)).await;
    }
    let digest = writer.finish().await.map_err(Fault::Write)?;
    if digest == blob.digest().as_ref() {
        Ok(())
    } else {
        Err(corrupt(format!("its digest is {digest}")))
    }
}

enum Stop {
    /// The file's side ended; it knows why.
    Writer,
    Corrupt(String),
    Registry(RegistryError),
    /// The connection did; another may bring the rest.
    Broke(String),
}

/// One request for what is missing.
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
                "asked for what follows byte {from}, it sends another part"
            )));
        }
    } else {
        skip = from;
        // A length of another content coding would not be the blob's.
        if let Some(length) = response.content_length().filter(|length| *length != blob.size()) {
            let size = blob.size();
            return Err(Stop::Corrupt(format!("it has {length} bytes, the manifest says {size}")));
        }
    }
    loop {
        let mut bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) if writer.sent == blob.size() => return Ok(()),
            Ok(None) => return Err(Stop::Broke("the end of the answer".to_owned())),
            Err(error) => {
                return Err(Stop::Broke(RegistryError::of_transport("", &error).cause()));
            }
        };
        let old = skip.min(bytes.len() as u64);
        skip -= old;
        // The least of two lengths, one of them a usize.
        let _ = bytes.split_to(old as usize);
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

/// Writes and hashes on a thread of its own, so that the next bytes are read meanwhile.
struct Writer {
    sender: mpsc::Sender<Bytes>,
    thread: JoinHandle<io::Result<String>>,
    sent: u64,
}

impl Writer {
    fn start(mut file: File, mut verifier: Verifier) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
        let thread = tokio::task::spawn_blocking(move || {
            // Another host's bytes may be there.
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

    /// Waits until all is on the disk; the digest of it.
    async fn finish(self) -> io::Result<String> {
        drop(self.sender);
        self.thread.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
