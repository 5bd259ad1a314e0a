//! What a process writes to its standard error, kept within bounds: a guest can make it write.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::ShareError;

/// What the file holds at most.
const FILE_MAX: usize = 256 * 1024;
/// What is kept for an error's message.
const TAIL: usize = 2 * 1024;

/// Copies a pipe to a file until that is full, and remembers the end. It reads for ever, so that
/// the writer never blocks.
#[derive(Debug)]
pub(super) struct BoundedLog {
    tail: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl BoundedLog {
    /// A log in a new file at `path`, and the pipe's end to write to.
    pub(super) fn open(path: &Path) -> Result<(Self, OwnedFd), ShareError> {
        let failed = |source| ShareError::io("writing", path)(source);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|e| failed(e.into()))?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(failed)?;
        let tail = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(copy(reader, file, tail.clone()));
        Ok((Self { tail, task }, writer))
    }

    /// The last lines so far.
    pub(super) fn tail(&self) -> String {
        let kept = lock(&self.tail);
        let start = kept.len().saturating_sub(TAIL);
        String::from_utf8_lossy(&kept[start..]).trim().to_owned()
    }
}

impl Drop for BoundedLog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn copy(mut reader: pipe::Receiver, mut file: File, tail: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 1024];
    let mut room = FILE_MAX;
    while let Ok(read @ 1..) = reader.read(&mut chunk).await {
        {
            let mut kept = lock(&tail);
            kept.extend_from_slice(&chunk[..read]);
            if kept.len() > 2 * TAIL {
                let excess = kept.len() - TAIL;
                kept.drain(..excess);
            }
        }
        let fits = read.min(room);
        if let Err(error) = file.write_all(&chunk[..fits]) {
            log::warn!("virtiofsd's log ends early: {error}");
            room = 0;
        }
        room = room.saturating_sub(fits);
    }
}

fn lock(tail: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_read_but_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (log, writer) = BoundedLog::open(&path).unwrap();
        let mut writer = File::from(writer);
        let flood = tokio::task::spawn_blocking(move || {
            for _ in 0..4096 {
                writer.write_all(&[b'x'; 255]).unwrap();
            }
            writer.write_all(b"\nthe end\n").unwrap();
        });
        flood.await.unwrap();
        for _ in 0..500 {
            if log.tail().ends_with("the end") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(log.tail().ends_with("the end"));
        assert!(log.tail().len() <= TAIL);
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, FILE_MAX as u64);
    }
}
