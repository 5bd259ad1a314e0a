//! Frames, and a guest that answers them.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};

/// `struct virtio_net_hdr`, before each frame of a tap.
const VIRTIO: usize = 10;

/// A guest that answers ARP, pings and UDP, and refuses TCP.
pub(super) struct Guest {
    thread: JoinHandle<Vec<Vec<u8>>>,
    end: Arc<AtomicBool>,
}

impl Guest {
    pub(super) fn run(tap: OwnedFd, mac: [u8; 6], ip: Ipv4Addr) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !ended.load(Ordering::Acquire) {
                let Some(frame) = receive(&tap, VIRTIO, Duration::from_millis(50)) else {
                    continue;
                };
                if let Some(answer) = answer(&frame, mac, ip) {
                    send(&tap, &answer);
                }
                seen.push(frame);
            }
            seen
        });
        Self { thread, end }
    }

    /// Ends it: the frames it got.
    pub(super) fn stop(self) -> Vec<Vec<u8>> {
        self.end.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// Everything that a namespace receives.
pub(super) struct Wire(OwnedFd);

impl Wire {
    pub(super) fn listen() -> Self {
        let all = SockProtocol::EthAll;
        Self(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap())
    }

    /// The frames up to one that contains `mark`.
    pub(super) fn until(&self, mark: &str, limit: Duration) -> Vec<Vec<u8>> {
        let (mut seen, deadline) = (Vec::new(), Instant::now() + limit);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {mark} in {seen:x?}");
            let Some(frame) = receive(&self.0, 0, left) else { continue };
            let last = String::from_utf8_lossy(&frame).contains(mark);
            seen.push(frame);
            if last {
                return seen;
            }
        }
    }
}

fn receive(fd: &OwnedFd, header: usize, limit: Duration) -> Option<Vec<u8>> {
    let limit = PollTimeout::try_from(limit).unwrap();
    let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, limit).unwrap() == 0 {
        return None;
    }
    let mut buffer = vec![0; 1 << 16];
    let length = std::fs::File::from(fd.try_clone().unwrap()).read(&mut buffer).ok()?;
    Some(buffer[header..length].to_vec())
}

/// Sends a frame as the guest.
pub(super) fn send(tap: &OwnedFd, frame: &[u8]) {
    let bytes = [&[0; VIRTIO][..], frame].concat();
    let written = std::fs::File::from(tap.try_clone().unwrap()).write(&bytes).unwrap();
    assert_eq!(written, bytes.len());
}

/// What a frame is, for assertions.
pub(super) fn kind(frame: &[u8]) -> &'static str {
    match (&frame[12..14], frame.get(23), frame.get(47)) {
        ([8, 6], ..) => "arp",
        ([8, 0], Some(1), _) => "icmp",
        ([8, 0], Some(6), Some(2)) => "tcp syn",
        ([8, 0], Some(17), _) => "udp",
        _ => "other",
    }
}

fn answer(frame: &[u8], mac: [u8; 6], ip: Ipv4Addr) -> Option<Vec<u8>> {
    let kind = kind(frame);
    let from: [u8; 6] = frame[6..12].try_into().ok()?;
    if kind == "arp" {
        let asks = frame[21] == 1 && frame[38..42] == ip.octets();
        let sender: [u8; 4] = frame[28..32].try_into().ok()?;
        return asks.then(|| arp_reply(mac, from, ip, sender.into()));
    }
    if frame.len() < 42 || frame[30..34] != ip.octets() {
        return None;
    }
    let mut reply = frame.to_vec();
    reply[..6].copy_from_slice(&from);
    reply[6..12].copy_from_slice(&mac);
    reply[26..30].copy_from_slice(&frame[30..34]);
    reply[30..34].copy_from_slice(&frame[26..30]);
    match kind {
        "icmp" if frame[34] == 8 => {
            reply.truncate(14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])));
            reply[34] = 0;
            reply[36..38].fill(0);
            let sum = checksum(&[&reply[34..]]);
            reply[36..38].copy_from_slice(&sum);
        }
        "udp" => {
            swap_ports(&mut reply);
            // No checksum, which IPv4 allows.
            reply[40..42].fill(0);
        }
        "tcp syn" => {
            swap_ports(&mut reply);
            let sequence = u32::from_be_bytes(frame[38..42].try_into().ok()?);
            reply.truncate(54);
            reply[16..18].copy_from_slice(&40u16.to_be_bytes());
            reply[38..42].fill(0);
            reply[42..46].copy_from_slice(&(sequence + 1).to_be_bytes());
            // Five words of header, RST and ACK.
            reply[46..54].copy_from_slice(&[0x50, 0x14, 0, 0, 0, 0, 0, 0]);
            let sum = checksum(&[&reply[26..34], &[0, 6, 0, 20], &reply[34..]]);
            reply[50..52].copy_from_slice(&sum);
            reply[24..26].fill(0);
            let sum = checksum(&[&reply[14..34]]);
            reply[24..26].copy_from_slice(&sum);
        }
        _ => return None,
    }
    Some(reply)
}

fn swap_ports(frame: &mut [u8]) {
    let (a, b) = frame[34..38].split_at_mut(2);
    a.swap_with_slice(b);
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An ARP reply to `target`: `ip` is at `mac`.
pub(super) fn arp_reply(mac: [u8; 6], to: [u8; 6], ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let ip = ip.octets();
    let target = target.octets();
    [&to[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac, &ip, &to, &target].concat()
}

/// A UDP packet to port 9.
pub(super) fn udp(
    mac: [u8; 6],
    to: [u8; 6],
    from: Ipv4Addr,
    dst: Ipv4Addr,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + length).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(dst.octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum);
    let [high, low] = length.to_be_bytes();
    [&to[..], &mac, &[8, 0], &ip, &[0, 99, 0, 9, high, low, 0, 0], payload].concat()
}

/// Pings `to` from this thread's namespace until it answers.
pub(super) fn ping(from: Ipv4Addr, to: Ipv4Addr, limit: Duration) -> io::Result<()> {
    let icmp = SockProtocol::Icmp;
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, icmp)?;
    let mut echo = vec![8, 0, 0, 0, 0xb0, 0x1d, 0, 1];
    echo.extend(from.octets());
    let sum = checksum(&[&echo]);
    echo[2..4].copy_from_slice(&sum);
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
        sendto(socket.as_raw_fd(), &echo, &to, MsgFlags::empty())?;
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        while poll(&mut ready, PollTimeout::from(200u8)).map_err(io::Error::from)? > 0 {
            let mut buffer = [0; 256];
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if length >= 28 && buffer[20] == 0 && buffer[24..26] == [0xb0, 0x1d] {
                return Ok(());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
