//! Connecting to sockets in a directory that is a monitor's.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tokio::net::UnixStream;

/// Connects to the socket that is at `path` itself: a monitor that was taken over could put a
/// symbolic link there, to a socket that is not for it.
///
/// # Errors
///
/// The kernel's, and [`io::ErrorKind::InvalidInput`] when something else is there.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let place = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !place.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [socket, link, none] = ["socket", "link", "none"].map(|name| dir.path().join(name));
        let listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let (connected, accepted) = tokio::join!(connect(&socket), listener.accept());
        connected.unwrap();
        accepted.unwrap();
        assert_eq!(connect(&link).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(connect(&none).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listener);
        let refused = connect(&socket).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
