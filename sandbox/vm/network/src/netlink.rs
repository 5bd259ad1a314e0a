//! A small netlink client for one thread in a network namespace. Attributes are looked up by
//! number and unknown ones are skipped, so that additions of newer kernels do no harm.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    DefaultNla, Emitable, ErrorBuffer, ErrorMessage, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NlasIterator, Parseable,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Receive timeout. The kernel answers at once, unless it waits for the RTNL lock.
const ANSWER_SECONDS: i64 = 10;

/// How often a dump is tried while the network changes.
const DUMPS: usize = 5;

/// A socket to the kernel's routing tables of this thread's network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
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

    /// Bodies of all messages of type `answer` in the dump `question`. `header` is the length of the
    /// request's own header, which is all zero.
    pub(crate) fn dump(
        &mut self,
        question: u16,
        answer: u16,
        header: usize,
    ) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMPS {
            self.send(question, NLM_F_DUMP, &vec![0; header], &[])?;
            let (found, interrupted) = self.answers(answer)?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the network keeps changing"))
    }

    /// Makes a change and waits until it is acknowledged.
    pub(crate) fn change(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: &[DefaultNla],
    ) -> io::Result<()> {
        self.send(kind, flags | NLM_F_ACK, header, attributes)?;
        self.answers(kind).map(drop)
    }

    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: &[DefaultNla],
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut netlink = NetlinkHeader::default();
        let start = netlink.buffer_len();
        let mut message = vec![0; start + header.len() + attributes.buffer_len()];
        netlink.length = u32::try_from(message.len()).map_err(io::Error::other)?;
        netlink.message_type = kind;
        netlink.flags = NLM_F_REQUEST | flags;
        netlink.sequence_number = self.sequence;
        netlink.emit(&mut message);
        message[start..start + header.len()].copy_from_slice(header);
        attributes.emit(&mut message[start + header.len()..]);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Bodies of the messages of type `wanted` until the answer is complete, and whether
    /// something changed meanwhile.
    fn answers(&self, wanted: u16) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let mut found = Vec::new();
        let mut interrupted = false;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                read => read?,
            };
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let length = usize::try_from(message.length()).map_err(io::Error::other)?;
                let kind = message.message_type();
                let body = message.payload();
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                if message.sequence_number() != self.sequence {
                    continue;
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE => return Ok((found, interrupted)),
                    NLMSG_ERROR => return refusal(body).map(|()| (found, interrupted)),
                    kind if kind == wanted => found.push(body.to_vec()),
                    _ => {}
                }
            }
        }
    }
}

/// The error of an `NLMSG_ERROR`; without a code it is an acknowledgement.
fn refusal(body: &[u8]) -> io::Result<()> {
    let parsed = ErrorBuffer::new_checked(&body).and_then(|buffer| ErrorMessage::parse(&buffer));
    let message = parsed.map_err(io::Error::other)?;
    if message.code.is_none() { Ok(()) } else { Err(message.to_io()) }
}

/// The value of the first attribute of type `kind` after a message's own header.
pub(crate) fn attribute(body: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    let attributes = NlasIterator::new(body.get(header..)?);
    let found = attributes.filter_map(Result::ok).find(|attribute| attribute.kind() == kind)?;
    let end = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..end)
}

/// An attribute that holds others.
pub(crate) fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind, value)
}

/// An attribute with a text that ends with 0.
pub(crate) fn text(kind: u16, value: &str) -> DefaultNla {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    DefaultNla::new(kind, bytes)
}

/// An attribute with a number.
pub(crate) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

/// The 32-bit number at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The 16-bit number at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_attributes_and_skips_others() {
        let mut body = vec![9; 8];
        let attributes = [number(4, 1500), text(3, "eth0"), nested(18, &[text(1, "veth")])];
        let mut tail = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut tail);
        body.extend(tail);
        assert_eq!(attribute(&body, 8, 4), Some(&1500u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&body, 8, 3), Some(&b"eth0\0"[..]));
        let info = attribute(&body, 8, 18).unwrap();
        assert_eq!(attribute(info, 0, 1), Some(&b"veth\0"[..]));
        assert_eq!(attribute(&body, 8, 77), None);
        assert_eq!(attribute(&body[..9], 8, 4), None, "cut short");
        assert_eq!(attribute(&body, 99, 4), None);
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
