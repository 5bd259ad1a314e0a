//! SPDY/3.1 frames: those that the runtimes' streaming servers need.
//!
//! Every containerd serves CRI's Exec and Attach over SPDY/3.1. Its other protocol, the websocket, cannot close the
//! standard input alone before containerd 1.7, so it is not used.
//!
//! Frames are those of the SPDY protocol's draft 3.1, section 2.2. Header blocks must be a zlib stream that uses the
//! protocol's dictionary; ours names the dictionary and has stored blocks only, which every inflater accepts.

/// A zlib header that announces a preset dictionary, and the checksum of SPDY/3's.
const ZLIB_HEADER: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
/// An empty stored block, which flushes everything before it.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// The length of a frame's head.
pub(super) const HEAD: usize = 8;
/// The payload limit of our data frames.
pub(super) const LARGEST_DATA: usize = 32 * 1024;

/// What a frame from the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of a stream, the last ones if `fin`.
    Data { stream: u32, fin: bool },
    /// The stream whose id is in the payload is closed.
    Reset,
    /// The payload must be sent back.
    Ping,
    /// The server closes the connection.
    GoAway,
    /// Irrelevant here: replies, settings, window updates.
    Other,
}

/// Reads a frame's head: what it is, and how many bytes of payload follow.
pub(super) fn head(bytes: [u8; HEAD]) -> (Kind, usize) {
    let [a, b, c, d, flags, high, mid, low] = bytes;
    let length = u32::from_be_bytes([0, high, mid, low]) as usize;
    if a & 0x80 == 0 {
        let stream = u32::from_be_bytes([a, b, c, d]);
        return (Kind::Data { stream, fin: flags & FIN != 0 }, length);
    }
    let kind = match u16::from_be_bytes([c, d]) {
        RST_STREAM => Kind::Reset,
        PING => Kind::Ping,
        GOAWAY => Kind::GoAway,
        _ => Kind::Other,
    };
    (kind, length)
}

/// Bytes for a stream; the last ones if `fin`. At most [`LARGEST_DATA`].
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = stream.to_be_bytes().to_vec();
    push_length(&mut frame, if fin { FIN } else { 0 }, bytes.len());
    frame.extend_from_slice(bytes);
    frame
}

/// The answer to a ping: the same payload.
pub(super) fn ping(payload: &[u8]) -> Vec<u8> {
    control(PING, payload)
}

/// Opens a stream with one header. `first` if no stream was opened on this connection before.
pub(super) fn open(stream: u32, name: &str, value: &str, first: bool) -> Vec<u8> {
    let mut headers = 1_u32.to_be_bytes().to_vec();
    for text in [name, value] {
        push_u32(&mut headers, text.len());
        headers.extend_from_slice(text.as_bytes());
    }
    let mut payload = stream.to_be_bytes().to_vec();
    // No associated stream, the highest priority, no slot.
    payload.extend_from_slice(&[0; 6]);
    if first {
        payload.extend_from_slice(&ZLIB_HEADER);
    }
    let length = u16::try_from(headers.len()).unwrap_or(u16::MAX);
    payload.push(0);
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(&(!length).to_le_bytes());
    payload.extend_from_slice(&headers);
    payload.extend_from_slice(&FLUSH);
    control(SYN_STREAM, &payload)
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = VERSION.to_be_bytes().to_vec();
    frame.extend_from_slice(&kind.to_be_bytes());
    push_length(&mut frame, 0, payload.len());
    frame.extend_from_slice(payload);
    frame
}

fn push_length(frame: &mut Vec<u8>, flags: u8, length: usize) {
    let at = frame.len();
    push_u32(frame, length);
    frame[at] = flags;
}

/// Lengths are of payloads made in this file, far below 16 MiB.
fn push_u32(frame: &mut Vec<u8>, length: usize) {
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        for (bytes, wanted) in [
            ([0, 0, 0, 5, 0, 0, 1, 2], (Kind::Data { stream: 5, fin: false }, 258)),
            ([0, 0, 0, 5, 1, 0, 0, 0], (Kind::Data { stream: 5, fin: true }, 0)),
            ([0x80, 3, 0, 2, 0, 0, 0, 9], (Kind::Other, 9)),
            ([0x80, 3, 0, 3, 0, 0, 0, 8], (Kind::Reset, 8)),
            ([0x80, 3, 0, 6, 0, 0, 0, 4], (Kind::Ping, 4)),
            ([0x80, 3, 0, 7, 0, 0, 0, 8], (Kind::GoAway, 8)),
        ] {
            assert_eq!(head(bytes), wanted);
        }
    }

    #[test]
    fn data_frames_read_back() {
        let frame = data(7, b"abc", true);
        let mut start = [0; HEAD];
        start.copy_from_slice(&frame[..HEAD]);
        assert_eq!(head(start), (Kind::Data { stream: 7, fin: true }, 3));
        assert_eq!(&frame[HEAD..], b"abc");
    }

    #[test]
    fn a_stream_is_opened_with_a_stored_header_block() {
        let frame = open(3, "streamtype", "stdin", true);
        let headers = b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05stdin";
        let mut wanted = vec![0x80, 3, 0, 1, 0, 0, 0, 10 + 6 + 5 + 27 + 5];
        wanted.extend_from_slice(&[0, 0, 0, 3, 0, 0, 0, 0, 0, 0]);
        wanted.extend_from_slice(&ZLIB_HEADER);
        wanted.extend_from_slice(&[0, 27, 0, !27, 0xff]);
        wanted.extend_from_slice(headers);
        wanted.extend_from_slice(&FLUSH);
        assert_eq!(frame, wanted);
        assert_eq!(open(5, "streamtype", "stdin", false).len(), frame.len() - ZLIB_HEADER.len());
    }
}
