//! The socket: requests, and the messages of their answers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    Emitable, ErrorBuffer, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, Parseable,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::attribute::{Attribute, body};

/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Receive timeout. The kernel answers at once, unless it waits for the RTNL lock.
const ANSWER_SECONDS: i64 = 10;

/// How often a dump is tried while the network changes.
const DUMPS: usize = 5;

/// A socket to the kernel's routing tables of one network namespace. Calls block, for 10 seconds at
/// most.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace, where it stays.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Bodies of all messages of type `answer` in the dump `question`. `header` is the length in bytes
    /// of the request's own header, which is all zero.
    ///
    /// # Errors
    ///
    /// The kernel's error; `TimedOut` without an answer; `ResourceBusy` if the table changed during
    /// each of several tries.
    pub fn dump(&mut self, question: u16, answer: u16, header: usize) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMPS {
            self.send(question, NLM_F_DUMP, &vec![0; header], &[])?;
            let (found, interrupted) = self.answers(answer)?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the network keeps changing"))
    }

    /// Sends a message of type `kind` that makes a change, and waits until it is acknowledged. A body
    /// that was read by [`dump`](Self::dump) is sent back as a `header` without `attributes`.
    ///
    /// # Errors
    ///
    /// The kernel's error; `TimedOut` without an answer.
    pub fn change(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: &[Attribute],
    ) -> io::Result<()> {
        self.send(kind, flags | NLM_F_ACK, header, attributes)?;
        self.answers(kind).map(drop)
    }

    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: &[Attribute],
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut netlink = NetlinkHeader::default();
        let body = body(header, attributes);
        let mut message = vec![0; netlink.buffer_len()];
        netlink.length = u32::try_from(message.len() + body.len()).map_err(io::Error::other)?;
        netlink.message_type = kind;
        netlink.flags = NLM_F_REQUEST | flags;
        netlink.sequence_number = self.sequence;
        netlink.emit(&mut message);
        message.extend(body);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Bodies of the messages of type `wanted` until the answer is complete, and whether
    /// something changed meanwhile.
    fn answers(&self, wanted: u16) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let mut answer = Answer::new(self.sequence, wanted);
        while !answer.read(&self.datagram()?)? {}
        Ok((answer.found, answer.interrupted))
    }

    /// The next datagram. Its length is asked for first: a buffer for the largest that could come
    /// would stay with the allocator of a thread that has ended.
    fn datagram(&self) -> io::Result<Vec<u8>> {
        let length = self.receive(&mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
        let mut datagram = vec![0; length];
        let read = self.receive(&mut datagram, MsgFlags::empty())?;
        datagram.truncate(read);
        Ok(datagram)
    }

    fn receive(&self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                read => return Ok(read?),
            }
        }
    }
}

/// What has been read of the answer to one request.
#[derive(Debug)]
struct Answer {
    sequence: u32,
    wanted: u16,
    found: Vec<Vec<u8>>,
    interrupted: bool,
}

impl Answer {
    fn new(sequence: u32, wanted: u16) -> Self {
        Self { sequence, wanted, found: Vec::new(), interrupted: false }
    }

    /// Reads the messages of one datagram. Returns whether the answer is complete.
    fn read(&mut self, mut datagram: &[u8]) -> io::Result<bool> {
        while !datagram.is_empty() {
            let message = NetlinkBuffer::new_checked(datagram).map_err(io::Error::other)?;
            let length = usize::try_from(message.length()).map_err(io::Error::other)?;
            let kind = message.message_type();
            let body = message.payload();
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            if message.sequence_number() != self.sequence {
                continue;
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match kind {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => return refusal(body).map(|()| true),
                kind if kind == self.wanted => self.found.push(body.to_vec()),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// The error of an `NLMSG_ERROR`; without a code it is an acknowledgement.
fn refusal(body: &[u8]) -> io::Result<()> {
    let parsed = ErrorBuffer::new_checked(&body).and_then(|buffer| ErrorMessage::parse(&buffer));
    let message = parsed.map_err(io::Error::other)?;
    if message.code.is_none() { Ok(()) } else { Err(message.to_io()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::attribute;

    /// Messages of one datagram: type and body of each.
    fn datagram(sequence: u32, messages: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, body) in messages {
            bytes.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(*body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn reads_messages_and_stops_at_nonsense() {
        let mut answer = Answer::new(7, 20);
        assert!(!answer.read(&datagram(7, &[(20, &[1, 2, 3]), (21, &[4])])).unwrap());
        assert!(!answer.read(&datagram(6, &[(20, &[9]), (NLMSG_DONE, &[0; 4])])).unwrap());
        assert!(answer.read(&datagram(7, &[(20, &[5]), (NLMSG_DONE, &[0; 4])])).unwrap());
        assert_eq!(answer.found, [vec![1, 2, 3], vec![5]]);
        let whole = datagram(7, &[(20, &[1, 2, 3])]);
        assert!(Answer::new(7, 20).read(&whole[..18]).is_err(), "cut short");
        let short = [4, 0, 0, 0, 1, 0, 0, 0];
        assert!(Answer::new(7, 20).read(&short).is_err(), "shorter than a header");
    }

    #[test]
    fn an_acknowledgement_is_not_an_error() {
        assert!(refusal(&[0; 20]).is_ok());
        let mut body = (-libc::ENODEV).to_ne_bytes().to_vec();
        body.extend([0; 16]);
        assert_eq!(refusal(&body).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(refusal(&[0]).is_err());
    }

    #[test]
    fn queries_the_kernel() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.dump(18, 16, 16).unwrap();
        let names: Vec<_> = links.iter().filter_map(|body| attribute(body, 16, 3)).collect();
        assert!(names.contains(&&b"lo\0"[..]), "{names:?}");
        let error = netlink.change(16, 0, &[0xff; 16], &[]).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
