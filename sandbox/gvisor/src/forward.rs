//! Port forwarding into a sandbox, whose own network stack the host's loopback does not reach.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use async_trait::async_trait;
use runsc::{Control, RunscId};
use sandbox_core::Error;
use sandbox_netns::{Dial, Stream};
use tokio::net::{TcpStream, UnixStream};

/// The ports of a sandbox's loopback: its control server connects a socket of ours to them.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) control: Control,
    /// The container that the sandbox was launched with: it runs as long as the sandbox does.
    pub(crate) sandbox: RunscId,
}

#[async_trait]
impl Dial for Inside {
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let asked = self.control.port_forward(&self.sandbox, port, theirs.as_fd()).await;
        asked.map_err(|error| io::Error::other(Error::from(error).to_string()))?;
        ours.set_nonblocking(true)?;
        Ok(Box::new(UnixStream::from_std(ours)?))
    }
}

/// The ports of a Pod's addresses, by way of the Pod's network: for a runsc that must not be asked
/// to connect. A server that listens on the sandbox's loopback alone is not reached.
#[derive(Debug)]
pub(crate) struct Outside(pub(crate) Vec<IpAddr>);

#[async_trait]
impl Dial for Outside {
    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>> {
        let addresses: Vec<_> = self.0.iter().map(|address| (*address, port).into()).collect();
        Ok(Box::new(TcpStream::connect(&addresses[..]).await?))
    }
}
