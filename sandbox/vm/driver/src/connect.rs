//! Unix sockets between this process and those of a VM.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::error::DriverError;

/// Between bind(2) and listen(2) a server refuses connections, and no inotify event reports listen.
const PAUSE: Duration = Duration::from_micros(500);

/// Connects to `socket` as soon as it is served. It has no deadline of its own.
pub(crate) async fn connect(socket: &Path) -> Result<UnixStream, DriverError> {
    let failed =
        |source| DriverError::File { step: "connecting to", path: socket.to_owned(), source };
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let created = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .and_then(|inotify| {
            inotify.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
            Ok(OwnedFd::from(inotify))
        })
        .map_err(|errno| failed(errno.into()))?;
    // An inotify descriptor is readable like a pipe.
    let mut created = pipe::Receiver::from_owned_fd_unchecked(created).map_err(failed)?;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whichever file it was: connect again.
                created.read(&mut [0; 1024]).await.map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A connected pair: this process's end and the one to pass on.
pub(crate) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connects_when_the_server_comes() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let mut connecting = Box::pin(connect(&socket));
        assert!(futures::poll!(connecting.as_mut()).is_pending());
        std::fs::write(socket.with_extension("other"), "").unwrap();
        assert!(futures::poll!(connecting.as_mut()).is_pending());
        let server = tokio::net::UnixListener::bind(&socket).unwrap();
        let within = Duration::from_secs(10);
        tokio::time::timeout(within, connecting).await.unwrap().unwrap();
        drop(server);

        // A socket without a server is waited for, within the caller's deadline.
        let unserved = tokio::time::timeout(Duration::from_millis(50), connect(&socket)).await;
        assert!(unserved.is_err());
        let nowhere = connect(Path::new("/no/such/dir/socket")).await.unwrap_err();
        assert!(nowhere.to_string().starts_with("connecting to /no/such/dir/socket"));
    }
}
