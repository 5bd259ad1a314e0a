//! Bounded logs of untrusted output: a process's stderr, a guest's console.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// How much of the output's end is kept for error messages, in bytes.
const TAIL: usize = 2048;
/// How long to drain the pipe of a dead process.
const DRAIN: Duration = Duration::from_millis(500);

/// A stream that is copied to a file up to a limit. What comes after the limit is read and
/// discarded, so that the writer never blocks.
#[derive(Debug, Clone)]
pub struct BoundedLog {
    tail: Arc<Mutex<VecDeque<u8>>>,
    done: watch::Receiver<()>,
}

impl BoundedLog {
    /// Copies `source` to a new file at `path`, at most `most` bytes of it.
    pub fn start(
        source: impl AsyncRead + Send + Unpin + 'static,
        path: &Path,
        most: u64,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, done) = watch::channel(());
        let kept = Arc::clone(&tail);
        // It ends with the last writer, which is a process that the VM's supervisor kills.
        tokio::spawn(async move {
            copy(source, file, most, &kept).await;
            drop(sender);
        });
        Ok(Self { tail, done })
    }

    /// [`BoundedLog::start`] on a new pipe, whose write end is returned.
    pub fn piped(path: &Path, most: u64) -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        Ok((Self::start(pipe::Receiver::from_owned_fd(reader)?, path, most)?, writer))
    }

    /// The last lines, after all that was written has been read.
    pub(crate) async fn ending(&self) -> String {
        let mut done = self.done.clone();
        // It times out only when another process holds the pipe: the tail so far has to do.
        let _ = tokio::time::timeout(DRAIN, done.changed()).await;
        self.tail()
    }

    /// The last lines so far.
    pub fn tail(&self) -> String {
        let tail = self.tail.lock();
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

async fn copy(
    mut source: impl AsyncRead + Unpin,
    mut file: File,
    most: u64,
    tail: &Mutex<VecDeque<u8>>,
) {
    let mut room = most;
    let mut chunk = [0; 2048];
    loop {
        let read = match source.read(&mut chunk).await {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) => return tracing::debug!("reading a log ends: {error}"),
        };
        let bytes = &chunk[..read];
        {
            let mut tail = tail.lock();
            tail.extend(bytes);
            let surplus = tail.len().saturating_sub(TAIL);
            tail.drain(..surplus);
        }
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(read);
        if fits > 0 {
            // A full disk must cost the log only, not the VM.
            if let Err(error) = file.write_all(&bytes[..fits]) {
                tracing::warn!("writing a log: {error}");
                room = 0;
                continue;
            }
            room -= fits as u64;
            if room == 0 {
                let _ = file.write_all(b"\n[the log ends here: it is full]\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn keeps_the_start_on_disk_and_the_end_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut writer, reader) = tokio::io::duplex(64);
        let log = BoundedLog::start(reader, &path, 10).unwrap();
        for _ in 0..1000 {
            writer.write_all(b"0123456789").await.unwrap();
        }
        writer.write_all(b"the end").await.unwrap();
        drop(writer);
        let ending = log.ending().await;
        assert!(ending.ends_with("6789the end") && ending.len() == TAIL);
        let file = std::fs::read_to_string(&path).unwrap();
        assert!(file.starts_with("0123456789\n[the log ends here") && file.len() < 64, "{file}");
    }
}
