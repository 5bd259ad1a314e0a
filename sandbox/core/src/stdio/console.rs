//! The socket on which an OCI runtime passes a pseudo-terminal's master
//! (`--console-socket`, runc's `docs/terminals.md`).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::net::{UnixListener, UnixStream};

use super::error::StdioError;

/// A listening console socket; its file is removed on drop.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`, which must be short enough for a socket (107 bytes).
    ///
    /// # Errors
    ///
    /// When the socket cannot be bound.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, StdioError> {
        let path = path.into();
        let listener = UnixListener::bind(&path)
            .map_err(|source| StdioError::Terminal { step: "listening for", source })?;
        Ok(Self { path, listener })
    }

    /// The socket's path, for the runtime.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the master, for `deadline` at most.
    ///
    /// # Errors
    ///
    /// When it is not received in time, or the peer sends something else.
    pub async fn receive(&self, deadline: Duration) -> Result<OwnedFd, StdioError> {
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            stream.readable().await?;
            loop {
                match take_fd(&stream) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
                    result => return result,
                }
            }
        };
        let failed = |source| StdioError::Terminal { step: "receiving", source };
        tokio::time::timeout(deadline, receive)
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Best effort: the socket is removed with the bundle otherwise.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[allow(unsafe_code, reason = "a received fd arrives as a bare number")]
fn take_fd(stream: &UnixStream) -> io::Result<OwnedFd> {
    stream.try_io(tokio::io::Interest::READABLE, || {
        let mut name = [0u8; 4096];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                if let [fd] = fds[..] {
                    // SAFETY: the kernel has just installed `fd` for this message; nothing owns it yet.
                    return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
    })
}
