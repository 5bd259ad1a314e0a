//! Sockets in a directory that a VMM can write to.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Connects to the socket at `path` without following a symbolic link: a compromised VMM could put
/// one there that leads to a socket it must not reach.
///
/// # Errors
///
/// Those of the kernel, and [`io::ErrorKind::InvalidInput`] when `path` is not a socket.
pub async fn connect_nofollow(path: &Path) -> io::Result<UnixStream> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let place = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !place.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).await
}

/// Writes all of `bytes`, and sends `fd` with the first of them.
pub(crate) async fn send(
    stream: &UnixStream,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = [IoSlice::new(&bytes[sent..])];
        let fds: Vec<RawFd> = fd.iter().filter(|_| sent == 0).map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sent += stream
            .async_io(Interest::WRITABLE, || {
                let flags = MsgFlags::MSG_NOSIGNAL;
                Ok(sendmsg::<()>(stream.as_raw_fd(), &rest, control, flags, None)?)
            })
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let [socket, link, none] = ["socket", "link", "none"].map(|name| dir.path().join(name));
        let listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let (connected, accepted) = tokio::join!(connect_nofollow(&socket), listener.accept());
        connected.unwrap();
        accepted.unwrap();
        assert_eq!(connect_nofollow(&link).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(connect_nofollow(&none).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listener);
        let refused = connect_nofollow(&socket).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
